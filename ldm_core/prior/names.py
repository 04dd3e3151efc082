"""The names of a prior's parameters in files, as templates over the network's own names.

karlo       Kakao Brain's file, under `model.`; queries, keys and values are one linear layer, head by head.
            Mean and std are in a file of their own
diffusers   `PriorTransformer`, with mean and std
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, Template, Transform, expand, interleaved_qkv, within
from ldm_core.nn.placement import parameter_names
from ldm_core.prior.config import PriorConfig
from ldm_core.prior.network import PriorTransformer

DIFFUSERS: Template = {
    "hidden_proj": "encoder_hidden_states_proj",
    "text_proj": "embedding_proj",
    "time_fc1": "time_embedding.linear_1",
    "time_fc2": "time_embedding.linear_2",
    "image_proj": "proj_in",
    "output_token": "prd_embedding",
    "positions": "positional_embedding",
    **within(
        "blocks.{i}.",
        "transformer_blocks.{i}.",
        {
            "norm1": "norm1",
            **{f"attn.to_{x}": f"attn1.to_{x}" for x in "qkv"},
            "attn.to_out": "attn1.to_out.0",
            "norm2": "norm3",
            "fc1": "ff.net.0.proj",
            "fc2": "ff.net.2",
        },
    ),
    "final_norm": "norm_out",
    "out": "proj_to_clip_embeddings",
    "mean": "clip_mean",
    "std": "clip_std",
}


@cache
def _heads(heads: int) -> Transform:
    """(3 * O, I) or (3 * O,) in the file, head by head, three of (O, I) or (O,) in the network."""
    conv = interleaved_qkv(heads, None)

    def save(xs: tuple[Tensor, ...]) -> Tensor:
        x = conv.save(xs)
        return x if x.ndim == 1 else x[:, :, 0]

    return Transform("linear qkv by head <-> split", conv.load, save)


def _karlo(heads: int) -> Template:
    fused = {
        f"attn.to_{x}.{tensor}": (f"attn.c_qkv.{tensor}", _heads(heads))
        for tensor in ("weight", "bias")
        for x in "qkv"
    }
    return {
        "hidden_proj": "text_enc_proj",
        "text_proj": "text_emb_proj",
        "time_fc1": "time_embed.0",
        "time_fc2": "time_embed.2",
        "image_proj": "clip_img_proj",
        "output_token": "prd_emb",
        "positions": "positional_embedding",
        **within(
            "blocks.{i}.",
            "transformer.resblocks.{i}.",
            {
                "norm1": "ln_1",
                **fused,
                "attn.to_out": "attn.c_proj",
                "norm2": "ln_2",
                "fc1": "mlp.c_fc",
                "fc2": "mlp.c_proj",
            },
        ),
        "final_norm": "final_ln",
        "out": "out_proj",
        "mean": None,
        "std": None,
    }


def diffusers_map(config: PriorConfig) -> KeyMap:
    """The key map of diffusers' names."""
    return expand(DIFFUSERS, parameter_names(PriorTransformer, config))


def karlo_map(config: PriorConfig) -> KeyMap:
    """The key map of Karlo's names, without their prefix and without the statistics."""
    return expand(_karlo(config.heads), parameter_names(PriorTransformer, config))
