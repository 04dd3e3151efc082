"""The names of the U-Net's parameters in files, as templates over the network's own names.

compvis     `UNetModel` of `ldm.modules.diffusionmodules.openaimodel`. Blocks are numbered across
            levels: input_blocks.0 is the first convolution, followed by the blocks and the downsampling of
            each level. A block is a list: the residual block (0), the transformer (1) if it has one, and last
            the upsampling, in the final block of a level on the way up.
diffusers   `UNet2DConditionModel`, or `UNet2DModel` without cross-attention. Blocks are grouped by level as
            in this package: only the names differ.
"""

from __future__ import annotations

from ldm_core.checkpoint.key_map import (
    CONV_1,
    CONV_1X1,
    SAME,
    KeyMap,
    Template,
    expand,
    interleaved_qkv,
    same,
    within,
)
from ldm_core.nn.placement import parameter_names
from ldm_core.unet.config import UNetConfig
from ldm_core.unet.network import UNet

COMPVIS_RES: Template = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
DIFFUSERS_RES: Template = {
    **same("norm1", "conv1", "norm2", "conv2"),
    "time_proj": "time_emb_proj",
    "skip": "conv_shortcut",
}
TRANSFORMER_BLOCK: Template = {
    **same("norm1", "norm2", "norm3"),
    **same("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn1.to_out": "attn1.to_out.0",
    "attn2.to_out": "attn2.to_out.0",
    "ff.proj_in": "ff.net.0.proj",
    "ff.proj_out": "ff.net.2",
    **same(*(f"fuser.{x}" for x in ("linear", "norm1", "norm2", "alpha_attn", "alpha_dense"))),
    **same("fuser.attn.to_q", "fuser.attn.to_k", "fuser.attn.to_v"),
    "fuser.attn.to_out": "fuser.attn.to_out.0",
    "fuser.ff.proj_in": "fuser.ff.net.0.proj",
    "fuser.ff.proj_out": "fuser.ff.net.2",
}
# GLIGEN's, which has the same names in its authors' and diffusers' files.
POSITION_NET: Template = same("null_positive_feature", "null_position_feature", "linears.{k}")
DIFFUSERS_ATTENTION: Template = {
    "norm": "group_norm",
    **{f"attn.to_{x}": f"to_{x}" for x in "qkv"},
    "attn.to_out": "to_out.0",
}


def _compvis_attention(config: UNetConfig) -> Template:
    """Self-attention. Its queries, keys and values are one tensor, whose order depends on the heads."""
    by_head = interleaved_qkv(config.num_heads, config.num_head_channels)
    return {
        "norm": "norm",
        **{f"attn.to_{x}.{kind}": (f"qkv.{kind}", by_head) for x in "qkv" for kind in ("weight", "bias")},
        "attn.to_out": ("proj_out", CONV_1),
    }


def _transformer(config: UNetConfig) -> Template:
    """A spatial transformer, which has the same names in CompVis's and diffusers' files."""
    projection = SAME if config.use_linear_in_transformer else CONV_1X1
    return {
        "norm": "norm",
        "proj_in": ("proj_in", projection),
        "proj_out": ("proj_out", projection),
        **within("blocks.{k}.", "transformer_blocks.{k}.", TRANSFORMER_BLOCK),
    }


def compvis_map(config: UNetConfig) -> KeyMap:
    """The key map of CompVis's names."""
    attention = _compvis_attention(config) if config.context_dim is None else _transformer(config)
    block = within("res.", "0.", COMPVIS_RES) | within("attention.", "1.", attention)
    template: Template = {
        "time_embed.linear1": "time_embed.0",
        "time_embed.linear2": "time_embed.2",
        "label_emb": "label_emb",
        "label_emb.linear1": "label_emb.0.0",
        "label_emb.linear2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        **within("down.{l}.blocks.{i}.", "input_blocks.{down}.", block),
        "down.{l}.resample.conv": "input_blocks.{downsampling}.0.op",
        **within("down.{l}.resample.", "input_blocks.{downsampling}.0.", COMPVIS_RES),
        **within("mid.res1.", "middle_block.0.", COMPVIS_RES),
        **within("mid.attention.", "middle_block.1.", attention),
        **within("mid.res2.", "middle_block.2.", COMPVIS_RES),
        **within("up.{l}.blocks.{i}.", "output_blocks.{up}.", block),
        "up.{l}.resample.conv": "output_blocks.{upsampling}.{last}.conv",
        **within("up.{l}.resample.", "output_blocks.{upsampling}.{last}.", COMPVIS_RES),
        **within("position_net.", "position_net.", POSITION_NET),
        "norm_out": "out.0",
        "conv_out": "out.2",
    }
    blocks, attends = config.num_res_blocks, config.attention_levels
    coarsest = len(config.channel_mult) - 1  # the level of up.0

    def numbers(l: int = 0, i: int = 0, k: int = 0) -> dict[str, int]:  # noqa: E741
        return {
            "down": 1 + l * (blocks + 1) + i,
            "downsampling": (l + 1) * (blocks + 1),
            "up": l * (blocks + 1) + i,
            "upsampling": l * (blocks + 1) + blocks,
            "last": 2 if coarsest - l in attends else 1,
            "k": k,
        }

    return expand(template, parameter_names(UNet, config), numbers)


def diffusers_map(config: UNetConfig) -> KeyMap:
    """The key map of diffusers' names."""
    attention = DIFFUSERS_ATTENTION if config.context_dim is None else _transformer(config)
    level: Template = {
        **within("blocks.{i}.res.", "resnets.{i}.", DIFFUSERS_RES),
        **within("blocks.{i}.attention.", "attentions.{i}.", attention),
    }
    template: Template = {
        "time_embed.linear1": "time_embedding.linear_1",
        "time_embed.linear2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "label_emb.linear1": "class_embedding.linear_1",
        "label_emb.linear2": "class_embedding.linear_2",
        "conv_in": "conv_in",
        **within("down.{l}.", "down_blocks.{l}.", level),
        "down.{l}.resample.conv": "down_blocks.{l}.downsamplers.0.conv",
        **within("down.{l}.resample.", "down_blocks.{l}.downsamplers.0.", DIFFUSERS_RES),
        **within("mid.res1.", "mid_block.resnets.0.", DIFFUSERS_RES),
        **within("mid.attention.", "mid_block.attentions.0.", attention),
        **within("mid.res2.", "mid_block.resnets.1.", DIFFUSERS_RES),
        **within("up.{l}.", "up_blocks.{l}.", level),
        "up.{l}.resample.conv": "up_blocks.{l}.upsamplers.0.conv",
        **within("up.{l}.resample.", "up_blocks.{l}.upsamplers.0.", DIFFUSERS_RES),
        **within("position_net.", "position_net.", POSITION_NET),
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    return expand(template, parameter_names(UNet, config))
