"""`ldm_core.tokenizer.CLIPTokenizer`: see `ldm_core.clip.tokenizer`."""

from ldm_core.clip.tokenizer import CLIPTokenizer

__all__ = ["CLIPTokenizer"]
