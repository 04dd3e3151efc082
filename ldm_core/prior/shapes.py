"""What the shapes of a prior's tensors prove, in Karlo's and in diffusers' names: all but the heads."""

from __future__ import annotations

from dataclasses import replace

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.prior.config import EXTRA_TOKENS, PriorConfig


def karlo_config(shapes: Shapes) -> PriorConfig:
    """From Karlo's names. Raises KeyError or ValueError where no prior has them."""
    return _config(shapes, "clip_img_proj", "text_enc_proj", "transformer.resblocks.", statistics=False)


def diffusers_config(shapes: Shapes) -> PriorConfig:
    """From diffusers' names, with the same errors."""
    statistics = "clip_mean" in shapes
    return _config(shapes, "proj_in", "encoder_hidden_states_proj", "transformer_blocks.", statistics)


def _config(shapes: Shapes, image: str, hidden: str, blocks: str, statistics: bool) -> PriorConfig:
    width, embedding_dim = shapes[f"{image}.weight"]
    return PriorConfig(
        width=width,
        layers=len(children(shapes, blocks)),
        heads=1,
        embedding_dim=embedding_dim,
        text_width=shapes[f"{hidden}.weight"][1],
        context_length=shapes["positional_embedding"][1] - EXTRA_TOKENS,
        statistics=statistics,
    )


def blank(config: PriorConfig) -> PriorConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    return replace(config, heads=1)


def fewest_tensors(config: PriorConfig) -> int:
    """How many tensors the blocks of such a prior have in either of the layouts."""
    return 12 * config.layers
