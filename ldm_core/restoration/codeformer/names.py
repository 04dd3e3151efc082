"""The names of CodeFormer's parameters in its files, as a template over the network's own names."""

from __future__ import annotations

from ldm_core.checkpoint.key_map import CONV_1X1, FUSED_QKV, KeyMap, Template, expand, same, within
from ldm_core.nn.placement import parameter_names
from ldm_core.restoration.codeformer.config import CodeFormerConfig, FaceAutoencoderConfig
from ldm_core.restoration.codeformer.network import CodeFormer, FaceAutoencoder

RES: Template = {**same("norm1", "conv1", "norm2", "conv2"), "skip": "conv_out"}
ATTENTION: Template = {
    "norm": "norm",
    "attn.to_q": ("q", CONV_1X1),
    "attn.to_k": ("k", CONV_1X1),
    "attn.to_v": ("v", CONV_1X1),
    "attn.to_out": ("proj_out", CONV_1X1),
}
BLOCK: Template = {"conv": "conv", **RES, **ATTENTION}
LAYER: Template = {
    **same("norm1", "norm2"),
    **{f"attn.to_{x}.weight": ("self_attn.in_proj_weight", FUSED_QKV) for x in "qkv"},
    **{f"attn.to_{x}.bias": ("self_attn.in_proj_bias", FUSED_QKV) for x in "qkv"},
    "attn.to_out": "self_attn.out_proj",
    "fc1": "linear1",
    "fc2": "linear2",
}
FACES: Template = {
    **same("encoder.blocks.{i}", "generator.blocks.{i}"),  # convolutions and norms without a name
    **within("encoder.blocks.{i}.", "encoder.blocks.{i}.", BLOCK),
    **within("generator.blocks.{i}.", "generator.blocks.{i}.", BLOCK),
    "codebook": "quantize.embedding.weight",
    "position_embedding": "position_emb",
    "project": "feat_emb",
    **within("layers.{i}.", "ft_layers.{i}.", LAYER),
    "norm_out": "idx_pred_layer.0",
    "to_logits": "idx_pred_layer.1",
    **within("fuse.{s}.res.", "fuse_convs_dict.{s}.encode_enc.", RES),
    "fuse.{s}.scale.{i}": "fuse_convs_dict.{s}.scale.{i}",
    "fuse.{s}.shift.{i}": "fuse_convs_dict.{s}.shift.{i}",
}


def key_map(config: FaceAutoencoderConfig) -> KeyMap:
    """The names in the files of CodeFormer, or of its autoencoder alone."""
    if isinstance(config, CodeFormerConfig):
        return expand(FACES, parameter_names(CodeFormer, config))
    return expand(FACES, parameter_names(FaceAutoencoder, config))
