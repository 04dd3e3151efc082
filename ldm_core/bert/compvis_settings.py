"""BERT's section in CompVis's YAML configurations, `cond_stage_config` with the class `BERTEmbedder`."""

from __future__ import annotations

from ldm_core.bert.config import BERTConfig
from ldm_core.checkpoint.yaml_values import Params, section
from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown

TARGETS = ("BERTEmbedder",)


def bert_in_yaml(model: Params) -> BERTConfig:
    """`BERTEmbedder`, with the class's defaults: those of prompts."""
    params = section(model, "cond_stage_config", "params")
    return BERTConfig(
        width=params["n_embed"],
        layers=params["n_layer"],
        vocab_size=params.get("vocab_size", 30522),
        context_length=params.get("max_seq_len", 77),
    )


def reads_text(model: Params) -> bool:
    """Whether the inputs are prompts, rather than token ids such as those of layouts."""
    value = section(model, "cond_stage_config", "params").get("use_tokenizer", True)
    if not isinstance(value, bool):
        raise ConfigError(f"use_tokenizer must be true or false, not {shown(value)}")
    return value
