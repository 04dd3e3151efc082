"""The tokenizer that Compel is given."""

from support.transformers_tokenizer import transformers_tokenizer

__all__ = ["transformers_tokenizer"]
