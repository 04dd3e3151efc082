"""`ldm_core.text_encoder.CLIPTextEncoder`: see `ldm_core.clip.text_encoder`."""

from ldm_core.clip.text_encoder import CLIPTextEncoder

__all__ = ["CLIPTextEncoder"]
