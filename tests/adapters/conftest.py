"""Fixtures of the tests of adapters."""

from support.embedding_files import add, model, untouched
from support.lora_models import _nothing_is_left_behind, adapters, pair, paths
from support.lora_pairs import small_pair, small_sd1
from support.transformers_tokenizer import transformers_tokenizer

__all__ = [
    "_nothing_is_left_behind",
    "adapters",
    "add",
    "model",
    "pair",
    "paths",
    "small_pair",
    "small_sd1",
    "transformers_tokenizer",
    "untouched",
]
