"""What the shapes of one part's tensors prove, from each of the layouts that it may be stored in.

Shapes prove widths, depths, where attention sits, and every tensor's name. They prove neither the number
of attention heads nor what depends on no tensor: those fields are set to one fixed value (`match.blank`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ldm_core.autoencoder import shapes as autoencoder_shapes
from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.clip import shapes as clip_shapes
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.parts import Part, PartSource
from ldm_core.support.printable import shown_error
from ldm_core.unet import shapes as unet_shapes
from ldm_core.unet.config import UNetConfig

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
    there, wanted = len(source.tensors), _FEWEST[source.layout.part](config)
    if wanted > 2 * there:
        raise ConfigError(
            f"only {there:,} of at least {wanted:,} tensors that this {source.layout.part} needs are there"
        )


def prove_all(sources: Mapping[Part, PartSource]) -> dict[Part, PartConfig]:
    """`prove` for every part."""
    return {part: prove(source) for part, source in sources.items()}


_PROOFS: dict[tuple[Part, str], Callable[[Shapes], Any]] = {
    ("unet", "compvis"): unet_shapes.compvis_config,
    ("unet", "diffusers"): unet_shapes.diffusers_config,
    ("autoencoder", "compvis"): autoencoder_shapes.compvis_config,
    ("autoencoder", "diffusers"): autoencoder_shapes.diffusers_config,
    ("text_encoder", "transformers"): clip_shapes.transformers_config,
    ("text_encoder", "open_clip"): clip_shapes.open_clip_config,
}
_FEWEST: dict[Part, Callable[[Any], int]] = {
    "unet": unet_shapes.fewest_tensors,
    "autoencoder": autoencoder_shapes.fewest_tensors,
    "text_encoder": clip_shapes.fewest_tensors,
}
