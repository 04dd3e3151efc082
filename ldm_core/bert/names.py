"""The names of BERT's parameters in files, as templates over the network's own names.

compvis     x-transformers' names, in which attention and MLP are layers of their own; the checkpoints of
            latent-diffusion have them under `cond_stage_model.transformer.`
diffusers   `LDMBertModel`, without its prefix `model.`
"""

from __future__ import annotations

from collections.abc import Mapping

from ldm_core.bert.config import BERTConfig
from ldm_core.bert.encoder import BERTEncoder
from ldm_core.checkpoint.key_map import KeyMap, Template, expand, same, within
from ldm_core.nn.placement import parameter_names

_ATTENTION: Template = {f"attn.to_{x}": f"1.to_{x}" for x in ("q", "k", "v", "out")}
_MLP: Template = {"norm2": "0", "fc1": "1.net.0.0", "fc2": "1.net.2"}
COMPVIS: Template = {
    "token_embedding": "token_emb",
    "position_embedding": "pos_emb.emb",
    **within("blocks.{i}.", "attn_layers.layers.{attention}.", {"norm1": "0", **_ATTENTION}),
    **within("blocks.{i}.", "attn_layers.layers.{mlp}.", _MLP),
    "final_norm": "norm",
}
DIFFUSERS: Template = {
    "token_embedding": "embed_tokens",
    "position_embedding": "embed_positions",
    **within(
        "blocks.{i}.",
        "layers.{i}.",
        {
            "norm1": "self_attn_layer_norm",
            **{f"attn.to_{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")},
            "norm2": "final_layer_norm",
            **same("fc1", "fc2"),
        },
    ),
    "final_norm": "layer_norm",
}

_LOGITS = "the prediction of words from the encoder's output, which conditions no U-Net"
# Tensors in files of both layouts that the network does not have, and why they are not needed.
EXTRAS = {"to_logits.weight": _LOGITS, "to_logits.bias": _LOGITS}


def compvis_map(config: BERTConfig) -> KeyMap:
    """The names of CompVis's checkpoints, without their prefix."""
    return expand(COMPVIS, parameter_names(BERTEncoder, config), _layers)


def diffusers_map(config: BERTConfig) -> KeyMap:
    """The names of diffusers' `LDMBertModel`, without its prefix."""
    return expand(DIFFUSERS, parameter_names(BERTEncoder, config))


def _layers(i: int = 0) -> Mapping[str, int]:
    """The numbers of a block's two layers."""
    return {"attention": 2 * i, "mlp": 2 * i + 1}
