"""Fixtures of the tests of CLIP and its tokenizer."""

from support.clip_checkpoints import clip
from support.transformers_tokenizer import transformers_tokenizer

__all__ = [
    "clip",
    "transformers_tokenizer",
]
