"""Reads and writes BERT's settings in diffusers' folders: `bert/config.json` and the tokenizer's files."""

from __future__ import annotations

from typing import Any

from ldm_core.bert.config import HEAD_SIZE, HEADS, BERTConfig
from ldm_core.bert.wordpiece import SPECIAL_TOKENS as IDS
from ldm_core.bert.wordpiece import read_vocabulary
from ldm_core.checkpoint.folder import SPECIAL_TOKENS, TOKENIZER
from ldm_core.checkpoint.setting_values import Settings, check_fixed, reading, whole
from ldm_core.errors import ConfigError

BERT = "bert/config.json"
# Settings that change the network, with their only supported value.
_FIXED = {"encoder_attention_heads": HEADS, "head_dim": HEAD_SIZE, "activation_function": "gelu"}


def bert_config(settings: Settings) -> BERTConfig:
    """From the settings of `LDMBertModel`. Raises CheckpointError for unsupported ones."""
    check_fixed(BERT, settings, _FIXED)
    with reading(BERT):
        width = whole(settings, "d_model", 1280)
        if (inner := whole(settings, "encoder_ffn_dim", 5120)) != 4 * width:
            raise ConfigError(f"expected encoder_ffn_dim {4 * width}, 4 × {width}, not {inner}")
        return BERTConfig(
            width=width,
            layers=whole(settings, "encoder_layers", 32),
            vocab_size=whole(settings, "vocab_size", 30522),
            context_length=whole(settings, "max_position_embeddings", 77),
        )


def bert_settings(config: BERTConfig) -> dict[str, Any]:
    """The inverse of `bert_config`."""
    return {
        **_FIXED,
        "architectures": ["LDMBertModel"],
        "d_model": config.width,
        "encoder_ffn_dim": 4 * config.width,
        "encoder_layers": config.layers,
        "max_position_embeddings": config.context_length,
        "model_type": "ldmbert",
        "num_hidden_layers": config.layers,
        "pad_token_id": IDS["[PAD]"],
        "vocab_size": config.vocab_size,
    }


def tokenizer_settings(config: BERTConfig) -> dict[str, Any]:
    """The files of its tokenizer: JSON values, or text."""
    tokens = {
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    return {
        "tokenizer/vocab.txt": read_vocabulary(),
        SPECIAL_TOKENS: tokens,
        TOKENIZER: {
            **tokens,
            "do_lower_case": True,
            "model_max_length": config.context_length,
            "tokenizer_class": "BertTokenizer",
        },
    }
