"""Fixtures of the prior's tests."""

from support.transformers_tokenizer import transformers_tokenizer

__all__ = ["transformers_tokenizer"]
