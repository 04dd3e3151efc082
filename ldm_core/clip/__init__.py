"""CLIP: its image encoder, text encoder, tokenizer and preprocessing, and the model that joins them."""

from ldm_core.clip.config import PRESETS, CLIPConfig, preset
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.model import CLIP, TEMPLATES
from ldm_core.clip.preprocessing import preprocess
from ldm_core.clip.stretched_preprocessing import preprocess_stretched
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.clip.tokenizer import CLIPTokenizer

__all__ = [
    "CLIP",
    "PRESETS",
    "TEMPLATES",
    "CLIPConfig",
    "CLIPImageEncoder",
    "CLIPTextEncoder",
    "CLIPTokenizer",
    "preprocess",
    "preprocess_stretched",
    "preset",
]
