"""BERT as the text encoder of the first latent diffusion models: its tokenizer and its transformer."""

from ldm_core.bert.config import BERTConfig
from ldm_core.bert.encoder import BERTEncoder
from ldm_core.bert.tokenizer import BERTTokenizer

__all__ = ["BERTConfig", "BERTEncoder", "BERTTokenizer"]
