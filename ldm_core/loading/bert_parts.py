"""The rows of the registry for BERT: as a text encoder, and as the encoder of layouts.

Both have the same names in files. A text encoder has the vocabulary of BERT's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_core.bert import compvis_settings, names, settings, shapes
from ldm_core.bert.config import BERTConfig, LayoutConfig
from ldm_core.bert.encoder import BERTEncoder
from ldm_core.bert.tokenizer import BERTTokenizer
from ldm_core.checkpoint.folder import CONFIG
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.checkpoint.yaml_values import Params
from ldm_core.conditioners.layout import Layout as LayoutConditioner
from ldm_core.loading.part import Folder, Layout, Part, Section
from ldm_core.model_config import LatentDiffusionConfig

_PREFIXES = (("cond_stage_model.", "transformer."), ("cond_stage_model.", ""), ("", "transformer."), ("", ""))


def _layout_config(config: BERTConfig) -> LayoutConfig:
    return LayoutConfig(config.width, config.layers, config.vocab_size, config.context_length)


def _layouts(text: bool) -> tuple[Layout, ...]:
    """CompVis's and diffusers' names, in files with, or without, the vocabulary of text."""

    def vocabulary(name: str, found: Shapes) -> bool:
        rows = found.get(f"{name}.weight", (0,))[0]
        return (rows == BERTTokenizer.vocab_size) is text

    def compvis(found: Shapes) -> BERTConfig:
        config = shapes.compvis_config(found)
        return config if text else _layout_config(config)

    def diffusers(found: Shapes) -> BERTConfig:
        config = shapes.diffusers_config(found)
        return config if text else _layout_config(config)

    return (
        Layout(
            "compvis",
            ("attn_layers.",),
            names.compvis_map,
            compvis,
            _PREFIXES,
            "cond_stage_model.transformer.",
            names.EXTRAS,
            accepts=lambda found: vocabulary("token_emb", found),
        ),
        Layout(
            "diffusers",
            ("embed_positions.",),
            names.diffusers_map,
            diffusers,
            (("bert.", "model."), ("", "model."), ("", "")),
            extras=names.EXTRAS,
            accepts=lambda found: vocabulary("embed_tokens", found),
        ),
    )


def _text_files(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    assert isinstance(model.text_encoder, BERTConfig)
    own = model.text_encoder
    return {f"{folder}/{CONFIG}": settings.bert_settings(own), **settings.tokenizer_settings(own)}


def _text_in_yaml(params: Params) -> BERTConfig | None:
    return compvis_settings.bert_in_yaml(params) if compvis_settings.reads_text(params) else None


def _layout_in_yaml(params: Params) -> LayoutConfig | None:
    if compvis_settings.reads_text(params):
        return None
    return _layout_config(compvis_settings.bert_in_yaml(params))


def _layout_conditioner(config: LayoutConfig, parts: Mapping[str, Any]) -> LayoutConditioner:
    return LayoutConditioner(
        parts["conditioner"], vocab_size=config.vocab_size, context_length=config.context_length
    )


BERT_PARTS: tuple[Part, ...] = (
    Part(
        "bert",
        "BERT text encoder",
        BERTConfig,
        BERTEncoder,
        _layouts(text=True),
        fills="text_encoder",
        proves_all=True,
        fewest=shapes.fewest_tensors,
        tokenizer=lambda config, words: BERTTokenizer(config.context_length),
        folder=Folder(
            {"bert": "model"},
            "diffusers",
            lambda own, folder: settings.bert_config(own),
            _text_files,
            {
                "bert": ("latent_diffusion", "LDMBertModel"),
                "tokenizer": ("transformers", "BertTokenizer", "BertTokenizerFast"),
            },
            prefix="model.",
        ),
        section=Section("cond_stage_config", _text_in_yaml, compvis_settings.TARGETS),
    ),
    Part(
        "layout",
        "layout encoder",
        LayoutConfig,
        BERTEncoder,
        _layouts(text=False),
        fills="conditioner",
        proves_all=True,
        fewest=shapes.fewest_tensors,
        conditions=_layout_conditioner,
        call="sample([[(3, 0.1, 0.2, 0.5, 0.6)]])",
        section=Section("cond_stage_config", _layout_in_yaml, compvis_settings.TARGETS),
    ),
)
