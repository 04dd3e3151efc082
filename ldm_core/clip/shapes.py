"""What the shapes of an encoder's tensors prove, in transformers' and in open_clip's (and OpenAI's) names.

Shapes prove its sizes, but not the number of heads, the gelu, and which layer and padding a model uses.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.clip.config import ImageEncoderConfig, TextEncoderConfig


def blank(config: TextEncoderConfig) -> TextEncoderConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    return replace(config, heads=1, activation="gelu", clip_skip=0, pad_token_id=0)


_BLANK_TEXT = blank(TextEncoderConfig())


def transformers_config(shapes: Shapes) -> TextEncoderConfig:
    """From transformers' names. Raises KeyError or ValueError where no text encoder has them."""
    vocab_size, width = shapes["embeddings.token_embedding.weight"]
    return replace(
        _BLANK_TEXT,
        vocab_size=vocab_size,
        context_length=shapes["embeddings.position_embedding.weight"][0],
        width=width,
        layers=len(children(shapes, "encoder.layers.")),
    )


def open_clip_config(shapes: Shapes) -> TextEncoderConfig:
    """From open_clip's names, with the same errors."""
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


def fewest_tensors(config: TextEncoderConfig) -> int:
    """How many tensors the blocks of such a text encoder have in either of the layouts."""
    return 12 * config.layers


def reduced(config: TextEncoderConfig) -> tuple[TextEncoderConfig, ...]:
    """The text encoder without its projection, without the blocks after the one whose output is taken, and
    without both: many files of SD2 lack them, and what is left gives the same numbers."""
    cut = replace(config, layers=config.layers - config.clip_skip, clip_skip=0)
    return replace(config, projection_dim=None), cut, replace(cut, projection_dim=None)


def blank_image_encoder(config: ImageEncoderConfig) -> ImageEncoderConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    usual = ImageEncoderConfig()
    return replace(config, heads=1, activation="gelu", mean=usual.mean, std=usual.std)


def image_encoder_config(shapes: Shapes, prefix: str) -> ImageEncoderConfig:
    """From either names of an image encoder under a prefix.

    Raises KeyError or ValueError where no image encoder has them.
    """
    if f"{prefix}visual.conv1.weight" in shapes:
        patches = shapes[f"{prefix}visual.conv1.weight"]
        positions = shapes[f"{prefix}visual.positional_embedding"]
        joint = shapes[f"{prefix}visual.proj"][1]
        blocks = f"{prefix}visual.transformer.resblocks."
    else:
        patches = shapes[f"{prefix}vision_model.embeddings.patch_embedding.weight"]
        positions = shapes[f"{prefix}vision_model.embeddings.position_embedding.weight"]
        joint = shapes[f"{prefix}visual_projection.weight"][0]
        blocks = f"{prefix}vision_model.encoder.layers."
    width, _, _, patch = patches
    return blank_image_encoder(
        ImageEncoderConfig(
            image_size=patch * math.isqrt(positions[0] - 1),
            patch_size=patch,
            width=width,
            layers=len(children(shapes, blocks)),
            heads=1,
            projection_dim=joint,
        )
    )
