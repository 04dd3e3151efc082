"""Infer a U-Net's configuration from the shapes of its tensors, in CompVis's or diffusers' names.

Shapes prove widths, depths and the levels with attention, but not the number of heads, which is set to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.support.limits import MAX_BLOCKS, MAX_LEVELS
from ldm_core.unet.config import UNetConfig


@dataclass
class _Levels:
    """The residual blocks on the way down, collected level by level."""

    context_dim: int | None  # None: self-attention blocks
    widths: list[int]
    blocks: list[int]
    attends: list[int]
    context_only: list[int]  # levels whose first attention takes the context, according to its shape

    def start_level(self) -> None:
        self.blocks.append(0)

    def add_block(self, width: int, self_attention: tuple[int, ...] | None) -> None:
        """self_attention: the shape of a projection from its input, if the block has attention."""
        level = len(self.blocks) - 1
        if self.blocks[level] == 0:
            self.widths.append(width)
        self.blocks[level] += 1
        if self_attention is not None and level not in self.attends:
            self.attends.append(level)
            if self_attention[1] == self.context_dim != width:
                self.context_only.append(level)

    def config(self, shapes: Shapes, names: Mapping[str, str], *, resblock_updown: bool) -> UNetConfig:
        """names: the layout's names of the tensors that prove the remaining fields."""
        transformer = "" if self.context_dim is None else names["attention"]
        depth = len(children(shapes, transformer + "transformer_blocks.")) if transformer else 1
        projected = shapes.get(names["time_proj"], (0,))[0]
        model_channels, in_channels = shapes[names["conv_in"]][:2]
        table, vector = shapes.get(names["table"]), shapes.get(names["vector"])
        return UNetConfig(
            in_channels=in_channels,
            out_channels=shapes[names["conv_out"]][0],
            model_channels=model_channels,
            channel_mult=tuple(width // model_channels for width in self.widths),
            num_res_blocks=self.blocks[0],
            attention_resolutions=tuple(2**level for level in self.attends),
            num_heads=1,
            transformer_depth=depth,
            context_dim=self.context_dim,
            use_linear_in_transformer=bool(transformer) and len(shapes[f"{transformer}proj_in.weight"]) == 2,
            disable_self_attentions=tuple(
                level in self.context_only for level in range(len(self.widths)) if self.context_only
            ),
            num_classes=None if table is None else table[0],
            adm_in_channels=None if vector is None else vector[1],
            use_scale_shift_norm=projected == 2 * self.widths[0],
            resblock_updown=resblock_updown,
            gated_self_attention="position_net.null_position_feature" in shapes,
        )


def _attention(shapes: Shapes, middle: str, own: str) -> tuple[int | None, str]:
    """(the width of the context or None, the name of the projection of a self-attention within a block).

    middle: the prefix of the middle block's attention; own: the projection's name in a block without context.
    """
    if middle + own in shapes:
        return None, own
    context_dim = shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1]
    return context_dim, "transformer_blocks.0.attn1.to_k.weight"


def _blocks_per_upsampling(shapes: Shapes) -> int:
    """After how many of CompVis's output blocks a residual block upsamples; 0 if none does."""
    for i in children(shapes, "output_blocks.", MAX_BLOCKS):
        if any(f"output_blocks.{i}.{last}.in_layers.0.weight" in shapes for last in (1, 2)):
            return i + 1
    return 0


def compvis_config(shapes: Shapes) -> UNetConfig:
    """From CompVis's names. Raises KeyError, ValueError or ZeroDivisionError if they form no U-Net."""
    names = {
        "conv_in": "input_blocks.0.0.weight",
        "conv_out": "out.2.weight",
        "attention": "middle_block.1.",
        "time_proj": "input_blocks.1.0.emb_layers.1.weight",
        "table": "label_emb.weight",
        "vector": "label_emb.0.0.weight",
    }
    context_dim, projection = _attention(shapes, names["attention"], "qkv.weight")
    levels = _Levels(context_dim, [], [0], [], [])
    period = _blocks_per_upsampling(shapes)
    for i in children(shapes, "input_blocks.", MAX_BLOCKS)[1:]:
        block = f"input_blocks.{i}."
        if f"{block}0.op.weight" in shapes or (period and i % period == 0):
            levels.start_level()
        else:
            levels.add_block(shapes[f"{block}0.out_layers.3.weight"][0], shapes.get(f"{block}1.{projection}"))
    return levels.config(shapes, names, resblock_updown=period > 0)


def diffusers_config(shapes: Shapes) -> UNetConfig:
    """From diffusers' names. Raises KeyError, ValueError or ZeroDivisionError if they form no U-Net."""
    names = {
        "conv_in": "conv_in.weight",
        "conv_out": "conv_out.weight",
        "attention": "mid_block.attentions.0.",
        "time_proj": "down_blocks.0.resnets.0.time_emb_proj.weight",
        "table": "class_embedding.weight",
        "vector": "class_embedding.linear_1.weight",
    }
    context_dim, projection = _attention(shapes, names["attention"], "to_q.weight")
    levels = _Levels(context_dim, [], [], [], [])
    for level in children(shapes, "down_blocks.", MAX_LEVELS):
        levels.start_level()
        for i in children(shapes, f"down_blocks.{level}.resnets."):
            width = shapes[f"down_blocks.{level}.resnets.{i}.conv2.weight"][0]
            levels.add_block(width, shapes.get(f"down_blocks.{level}.attentions.{i}.{projection}"))
    resnet = "down_blocks.0.downsamplers.0.conv1.weight" in shapes
    return levels.config(shapes, names, resblock_updown=resnet)


def fewest_tensors(config: UNetConfig) -> int:
    """A lower bound on the number of tensors, without shortcuts and resampling."""
    blocks = 2 * config.num_res_blocks + 1  # per level, on the way down and up
    attentions = 1 + len(config.attention_levels) * blocks
    each = 6 if config.context_dim is None else 20 * config.transformer_depth
    return 10 * len(config.channel_mult) * blocks + each * attentions


def blank(config: UNetConfig) -> UNetConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    levels, transformer = config.attention_levels, config.context_dim is not None
    disabled = tuple(
        # If the level is as wide as the context, both kinds of attention have the same shapes.
        transformer
        and bool(config.disable_self_attentions)
        and config.disable_self_attentions[level]
        and level in levels
        and config.model_channels * mult != config.context_dim
        for level, mult in enumerate(config.channel_mult)
    )
    return replace(
        config,
        num_heads=1,
        num_head_channels=None,
        attention_resolutions=tuple(2**level for level in levels),
        disable_self_attentions=disabled if any(disabled) else (),
        transformer_depth=config.transformer_depth if transformer else 1,
        use_linear_in_transformer=transformer and config.use_linear_in_transformer,
        resblock_updown=config.resblock_updown and len(config.channel_mult) > 1,
    )
