"""What tensor shapes prove about a model, and what they leave open.

Shapes prove widths, depths, where attention sits, and every tensor's name. They prove neither the number
of attention heads, nor what the U-Net predicts, nor the latent scale, nor the noise schedule. So a file is
recognised only if its proven part is exactly one known model's; otherwise a configuration must be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ldm_core.checkpoint.compvis import AUTOENCODER, OPEN_CLIP, TEXT_ENCODER, UNET
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.config import (
    PRESETS,
    AutoencoderConfig,
    LatentDiffusionConfig,
    NoiseScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)

Shapes = Mapping[str, tuple[int, ...]]

HEAD_SIZE = 64  # of every published CLIP text encoder


def proven_config(shapes: Shapes) -> LatentDiffusionConfig:
    """The configuration that these tensors prove, with what they cannot prove set as `blank` sets it.

    Raises CheckpointError naming the part that is not in the file.
    """
    parts = {"U-Net": (UNET,), "autoencoder": (AUTOENCODER,), "text encoder": (TEXT_ENCODER, OPEN_CLIP)}
    absent = [name for name, prefixes in parts.items() if not any(k.startswith(prefixes) for k in shapes)]
    if absent:
        raise CheckpointError(
            f"the file holds no {' and no '.join(absent)} in CompVis's layout "
            f"(keys such as {', '.join(repr(k) for k in list(shapes)[:3])})"
        )
    try:
        return blank(
            LatentDiffusionConfig(
                text_encoder=_text_encoder(shapes), unet=_unet(shapes), autoencoder=_autoencoder(shapes)
            )
        )
    except (KeyError, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"the tensors are of no cross-attention latent diffusion model: no {error}"
        ) from error


def blank(config: LatentDiffusionConfig) -> LatentDiffusionConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    unet, autoencoder = config.unet, config.autoencoder
    levels = unet.attention_levels
    disabled = tuple(
        # Where the level is as wide as the context, both kinds of attention have the same shapes.
        bool(unet.disable_self_attentions)
        and unet.disable_self_attentions[level]
        and level in levels
        and unet.model_channels * mult != unet.context_dim
        for level, mult in enumerate(unet.channel_mult)
    )
    top = len(autoencoder.ch_mult) - 1
    attends = tuple(2 ** (top - level) for level in range(top + 1) if autoencoder.has_attention(level))
    return LatentDiffusionConfig(
        text_encoder=replace(config.text_encoder, heads=1, activation="gelu", clip_skip=0, pad_token_id=0),
        unet=replace(
            unet,
            num_heads=1,
            num_head_channels=None,
            attention_resolutions=tuple(2**level for level in levels),
            disable_self_attentions=disabled if any(disabled) else (),
        ),
        autoencoder=replace(autoencoder, resolution=2**top, attn_resolutions=attends),
        noise_schedule=NoiseScheduleConfig(),
        latent_scale=1.0,
        prediction="eps",
        image_size=autoencoder.downsampling,
    )


def matching_presets(proven: LatentDiffusionConfig) -> list[str]:
    """The names of the presets whose tensors are exactly the proven ones."""
    return [name for name, config in PRESETS.items() if blank(config) == proven]


def differences(config: LatentDiffusionConfig, proven: LatentDiffusionConfig) -> list[str]:
    """Where a configuration contradicts the tensors, one line each; empty if it fits."""
    given = blank(config)
    lines = []
    for part in ("text_encoder", "unet", "autoencoder"):
        ours, theirs = getattr(given, part), getattr(proven, part)
        for field in fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            if a != b:
                lines.append(f"{part}.{field.name}: the configuration says {a}, the tensors {b}")
    return lines


def with_proven_text_encoder(
    config: LatentDiffusionConfig, proven: LatentDiffusionConfig
) -> LatentDiffusionConfig:
    """CompVis's YAML files name a text encoder class and not its size: take the size from the tensors."""
    found = proven.text_encoder
    if found.width % HEAD_SIZE:
        raise CheckpointError(
            f"the text encoder's width {found.width} is no multiple of CLIP's head size {HEAD_SIZE}"
        )
    named = config.text_encoder
    size = replace(
        found,
        heads=found.width // HEAD_SIZE,
        activation=named.activation,
        clip_skip=named.clip_skip,
        pad_token_id=named.pad_token_id,
    )
    return replace(config, text_encoder=size)


def _children(shapes: Shapes, prefix: str) -> list[int]:
    """The numbers that follow a prefix: `_children(shapes, "a.") == [0, 1]` for a.0.x, a.1.x."""
    found = {key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)}
    return sorted(int(name) for name in found if name.isdigit())


def _unet(shapes: Shapes) -> UNetConfig:
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    model_channels = first[0]
    mult: list[int] = []
    blocks: list[int] = [0]
    attends: list[int] = []
    context_levels: list[int] = []
    transformer = f"{UNET}middle_block.1."
    context_dim = shapes[f"{transformer}transformer_blocks.0.attn2.to_k.weight"][1]
    for i in _children(shapes, f"{UNET}input_blocks.")[1:]:
        block, level = f"{UNET}input_blocks.{i}.", len(blocks) - 1
        if f"{block}0.op.weight" in shapes:
            blocks.append(0)
            continue
        width = shapes[f"{block}0.out_layers.3.weight"][0]
        if blocks[level] == 0:
            mult.append(width // model_channels)
        blocks[level] += 1
        keys = f"{block}1.transformer_blocks.0.attn1.to_k.weight"
        if keys in shapes and level not in attends:
            attends.append(level)
            if shapes[keys][1] == context_dim != width:
                context_levels.append(level)
    linear = len(shapes[f"{transformer}proj_in.weight"]) == 2
    table = shapes.get(f"{UNET}label_emb.weight")
    vector = shapes.get(f"{UNET}label_emb.0.0.weight")
    return UNetConfig(
        in_channels=first[1],
        out_channels=shapes[f"{UNET}out.2.weight"][0],
        model_channels=model_channels,
        channel_mult=tuple(mult),
        num_res_blocks=blocks[0],
        attention_resolutions=tuple(2**level for level in attends),
        num_heads=1,
        transformer_depth=len(_children(shapes, f"{transformer}transformer_blocks.")),
        context_dim=context_dim,
        use_linear_in_transformer=linear,
        disable_self_attentions=tuple(level in context_levels for level in range(len(mult))),
        num_classes=None if table is None else table[0],
        adm_in_channels=None if vector is None else vector[1],
    )


def _autoencoder(shapes: Shapes) -> AutoencoderConfig:
    encoder = f"{AUTOENCODER}encoder."
    ch, in_channels = shapes[f"{encoder}conv_in.weight"][:2]
    levels = _children(shapes, f"{encoder}down.")
    top = levels[-1]
    return AutoencoderConfig(
        embed_dim=shapes[f"{AUTOENCODER}post_quant_conv.weight"][1],
        z_channels=shapes[f"{AUTOENCODER}decoder.conv_in.weight"][1],
        resolution=2**top,
        in_channels=in_channels,
        out_ch=shapes[f"{AUTOENCODER}decoder.conv_out.weight"][0],
        ch=ch,
        ch_mult=tuple(shapes[f"{encoder}down.{i}.block.0.conv2.weight"][0] // ch for i in levels),
        num_res_blocks=len(_children(shapes, f"{encoder}down.0.block.")),
        attn_resolutions=tuple(
            2 ** (top - i) for i in levels if f"{encoder}down.{i}.attn.0.norm.weight" in shapes
        ),
    )


def _text_encoder(shapes: Shapes) -> TextEncoderConfig:
    if f"{TEXT_ENCODER}embeddings.token_embedding.weight" in shapes:
        vocab_size, width = shapes[f"{TEXT_ENCODER}embeddings.token_embedding.weight"]
        context_length = shapes[f"{TEXT_ENCODER}embeddings.position_embedding.weight"][0]
        layers, projection = _children(shapes, f"{TEXT_ENCODER}encoder.layers."), None
    else:
        vocab_size, width = shapes[f"{OPEN_CLIP}token_embedding.weight"]
        context_length = shapes[f"{OPEN_CLIP}positional_embedding"][0]
        layers = _children(shapes, f"{OPEN_CLIP}transformer.resblocks.")
        projection = shapes[f"{OPEN_CLIP}text_projection"][1]
    values: dict[str, Any] = {"heads": 1, "projection_dim": projection}
    return TextEncoderConfig(vocab_size, context_length, width, len(layers), **values)
