"""Infer the configurations of CodeFormer and of its autoencoder from the shapes of their tensors."""

from __future__ import annotations

import math
from typing import Any

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.restoration.codeformer.config import CodeFormerConfig, FaceAutoencoderConfig
from ldm_core.support.limits import MAX_BLOCKS, MAX_SIZE

BLOCKS = "encoder.blocks."


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """The fields that both configurations have."""
    ch = shapes[f"{BLOCKS}0.weight"][0]
    widths: list[list[int]] = [[]]  # of the residual blocks of each level
    for i in children(shapes, BLOCKS, MAX_BLOCKS):
        if f"{BLOCKS}{i}.conv.weight" in shapes:
            widths.append([])
        elif f"{BLOCKS}{i}.conv2.weight" in shapes:
            widths[-1].append(shapes[f"{BLOCKS}{i}.conv2.weight"][0])
    codes, code_dim = shapes["quantize.embedding.weight"]
    return {
        "ch": ch,
        "ch_mult": tuple(level[0] // ch for level in widths),
        # The coarsest level has the two blocks of the middle, too.
        "num_res_blocks": len(widths[0]) - (2 if len(widths) == 1 else 0),
        "code_dim": code_dim,
        "codes": codes,
    }


def autoencoder_config(shapes: Shapes) -> FaceAutoencoderConfig:
    """Raises KeyError, IndexError or ValueError for shapes that form no such network."""
    return FaceAutoencoderConfig(**_sizes(shapes))


def codeformer_config(shapes: Shapes) -> CodeFormerConfig:
    """With the same errors."""
    sizes = _sizes(shapes)
    tokens, width = shapes["position_emb"]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"expected a square number of positions, got {tokens}")
    return CodeFormerConfig(
        **sizes,
        size=side * 2 ** (len(sizes["ch_mult"]) - 1),
        width=width,
        layers=len(children(shapes, "ft_layers.")),
        fuse=tuple(children(shapes, "fuse_convs_dict.", MAX_SIZE)),
    )


def fewest_tensors(config: FaceAutoencoderConfig) -> int:
    """A lower bound on the number of tensors."""
    layers = config.layers if isinstance(config, CodeFormerConfig) else 0
    return 16 * len(config.ch_mult) * config.num_res_blocks + 12 * layers
