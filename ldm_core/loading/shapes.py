"""What the shapes of one part's tensors prove, from each of the layouts that it may be stored in.

Shapes prove widths, depths, where attention sits, and every tensor's name. They prove neither the number
of attention heads nor what depends on no tensor: those fields are set to one fixed value (`detect.blank`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.parts import Part, PartSource
from ldm_core.support.limits import MAX_BLOCKS, MAX_DEPTH, MAX_LEVELS
from ldm_core.support.printable import shown_error
from ldm_core.unet.config import UNetConfig

Shapes = Mapping[str, tuple[int, ...]]
PartConfig = TextEncoderConfig | UNetConfig | AutoencoderConfig


def prove(source: PartSource) -> PartConfig:
    """The configuration of a part that its shapes prove. Raises CheckpointError if they prove none."""
    layout = source.layout
    try:
        config = _PROOFS[layout.part, layout.name](source.shapes)
        _require_tensors(source, config)
        return config
    except ConfigError as error:
        raise CheckpointError(f"{source.checkpoint.path.name}: {error}") from error
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        lacks = isinstance(error, KeyError)
        wrong = f"{shown_error(error)} is missing" if lacks else "the shapes or numbers of layers do not fit"
        raise CheckpointError(
            f"{source.checkpoint.path.name}: the tensors under {source.prefix!r} do not form a known "
            f"{layout.part} ({layout.name} names): {wrong}"
        ) from error


def _require_tensors(source: PartSource, config: PartConfig) -> None:
    """Raise ConfigError where most of a network is not there: a few names can prove one of any size.

    The tensors are counted, not named, since names would need the network, which may be large.
    """
    there, wanted = len(source.tensors), _fewest_tensors(config)
    if wanted > 2 * there:
        raise ConfigError(
            f"only {there:,} of at least {wanted:,} tensors that this {source.layout.part} needs are there"
        )


def _fewest_tensors(config: PartConfig) -> int:
    """How many tensors the blocks of a network have in any layout, without shortcuts and resampling."""
    if isinstance(config, TextEncoderConfig):
        return 12 * config.layers
    blocks = 2 * config.num_res_blocks + 1  # of a level, on its way down and up
    if isinstance(config, AutoencoderConfig):
        return 8 * len(config.ch_mult) * blocks
    transformers = 1 + len(config.attention_levels) * blocks
    return 10 * len(config.channel_mult) * blocks + 20 * config.transformer_depth * transformers


def prove_all(sources: Mapping[Part, PartSource]) -> dict[Part, PartConfig]:
    """`prove` for every part."""
    return {part: prove(source) for part, source in sources.items()}


def children(shapes: Shapes, prefix: str, limit: int = MAX_DEPTH) -> list[int]:
    """The numbers that follow a prefix: `children(shapes, "a.") == [0, 1]` for a.0.x, a.1.x.

    Raises ConfigError for numbers of `limit` or more.
    """
    found = {key[len(prefix) :].split(".", 1)[0] for key in shapes if key.startswith(prefix)}
    names = [name for name in found if name.isdecimal()]
    if any(len(name) > len(str(limit)) or int(name) >= limit for name in names):
        raise ConfigError(f"its tensors under {prefix} are numbered to {limit} or more")
    return sorted(map(int, names))


@dataclass
class _Levels:
    """The residual blocks of a U-Net's way down, gathered level by level."""

    context_dim: int
    widths: list[int]
    blocks: list[int]
    attends: list[int]
    context_only: list[int]  # levels whose first attention reads the context, which shows in its shape

    def start_level(self) -> None:
        self.blocks.append(0)

    def add_block(self, width: int, self_attention: tuple[int, ...] | None) -> None:
        level = len(self.blocks) - 1
        if self.blocks[level] == 0:
            self.widths.append(width)
        self.blocks[level] += 1
        if self_attention is not None and level not in self.attends:
            self.attends.append(level)
            if self_attention[1] == self.context_dim != width:
                self.context_only.append(level)

    def config(self, shapes: Shapes, names: Mapping[str, str]) -> UNetConfig:
        """`names` are this layout's names of the tensors that say the rest."""
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
            transformer_depth=len(children(shapes, names["transformer"] + "transformer_blocks.")),
            context_dim=self.context_dim,
            use_linear_in_transformer=len(shapes[names["transformer"] + "proj_in.weight"]) == 2,
            disable_self_attentions=tuple(
                level in self.context_only for level in range(len(self.widths)) if self.context_only
            ),
            num_classes=None if table is None else table[0],
            adm_in_channels=None if vector is None else vector[1],
        )


_QUERY_OF = "transformer_blocks.0.attn1.to_k.weight"


def _context_dim(shapes: Shapes, transformer: str) -> int:
    return shapes[f"{transformer}transformer_blocks.0.attn2.to_k.weight"][1]


def _compvis_unet(shapes: Shapes) -> UNetConfig:
    names = {
        "conv_in": "input_blocks.0.0.weight",
        "conv_out": "out.2.weight",
        "transformer": "middle_block.1.",
        "table": "label_emb.weight",
        "vector": "label_emb.0.0.weight",
    }
    levels = _Levels(_context_dim(shapes, names["transformer"]), [], [0], [], [])
    for i in children(shapes, "input_blocks.", MAX_BLOCKS)[1:]:
        block = f"input_blocks.{i}."
        if f"{block}0.op.weight" in shapes:
            levels.start_level()
        else:
            levels.add_block(shapes[f"{block}0.out_layers.3.weight"][0], shapes.get(f"{block}1.{_QUERY_OF}"))
    return levels.config(shapes, names)


def _diffusers_unet(shapes: Shapes) -> UNetConfig:
    names = {
        "conv_in": "conv_in.weight",
        "conv_out": "conv_out.weight",
        "transformer": "mid_block.attentions.0.",
        "table": "class_embedding.weight",
        "vector": "class_embedding.linear_1.weight",
    }
    levels = _Levels(_context_dim(shapes, names["transformer"]), [], [], [], [])
    for level in children(shapes, "down_blocks.", MAX_LEVELS):
        levels.start_level()
        for i in children(shapes, f"down_blocks.{level}.resnets."):
            width = shapes[f"down_blocks.{level}.resnets.{i}.conv2.weight"][0]
            levels.add_block(width, shapes.get(f"down_blocks.{level}.attentions.{i}.{_QUERY_OF}"))
    return levels.config(shapes, names)


def _autoencoder(shapes: Shapes, level_name: str, block: str, attention: str) -> AutoencoderConfig:
    ch, in_channels = shapes["encoder.conv_in.weight"][:2]
    levels = children(shapes, f"encoder.{level_name}.", MAX_LEVELS)
    top = levels[-1]
    prefixes = [f"encoder.{level_name}.{i}." for i in levels]
    return AutoencoderConfig(
        embed_dim=shapes["post_quant_conv.weight"][1],
        z_channels=shapes["decoder.conv_in.weight"][1],
        resolution=2**top,
        in_channels=in_channels,
        out_ch=shapes["decoder.conv_out.weight"][0],
        ch=ch,
        ch_mult=tuple(shapes[f"{prefix}{block}.0.conv2.weight"][0] // ch for prefix in prefixes),
        num_res_blocks=len(children(shapes, f"{prefixes[0]}{block}.")),
        attn_resolutions=tuple(
            2 ** (top - i) for i, prefix in zip(levels, prefixes) if f"{prefix}{attention}.weight" in shapes
        ),
    )


def _compvis_autoencoder(shapes: Shapes) -> AutoencoderConfig:
    return _autoencoder(shapes, "down", "block", "attn.0.norm")


def _diffusers_autoencoder(shapes: Shapes) -> AutoencoderConfig:
    return _autoencoder(shapes, "down_blocks", "resnets", "attentions.0.group_norm")


# What no shape proves, as `detect.blank` sets it.
_BLANK_TEXT = TextEncoderConfig(heads=1, activation="gelu", clip_skip=0, pad_token_id=0)


def _transformers_text(shapes: Shapes) -> TextEncoderConfig:
    vocab_size, width = shapes["embeddings.token_embedding.weight"]
    return replace(
        _BLANK_TEXT,
        vocab_size=vocab_size,
        context_length=shapes["embeddings.position_embedding.weight"][0],
        width=width,
        layers=len(children(shapes, "encoder.layers.")),
    )


def _open_clip_text(shapes: Shapes) -> TextEncoderConfig:
    vocab_size, width = shapes["token_embedding.weight"]
    projection = shapes.get("text_projection")
    return replace(
        _BLANK_TEXT,
        vocab_size=vocab_size,
        context_length=shapes["positional_embedding"][0],
        width=width,
        layers=len(children(shapes, "transformer.resblocks.")),
        projection_dim=None if projection is None else projection[1],
    )


_PROOFS: dict[tuple[str, str], Callable[[Shapes], Any]] = {
    ("unet", "compvis"): _compvis_unet,
    ("unet", "diffusers"): _diffusers_unet,
    ("autoencoder", "compvis"): _compvis_autoencoder,
    ("autoencoder", "diffusers"): _diffusers_autoencoder,
    ("text_encoder", "transformers"): _transformers_text,
    ("text_encoder", "open_clip"): _open_clip_text,
}
