"""CLIP's image vectors with noise, and prompts, as a Condition: stable unCLIP, variations of pictures.

    y = [std z + mean, emb(n)],    z = a_n (e - mean) / std + s_n eps        e: a picture's CLIP embedding

y is added to the timestep embedding (Ramesh et al. 2022, arXiv:2204.06125, section 2.1); `noise_augmentation`
has the noise of level n. Stability AI's counterpart is `ImageEmbeddingConditionedLatentDiffusion` of
`ldm.models.diffusion.ddpm`. Its checkpoints lack mean and std, the statistics of CLIP's embeddings: 0 and 1
for OpenCLIP's ViT-H (unCLIP-h). Those for OpenAI's ViT-L/14 (unCLIP-l) are in a file of their own, from which
`dataclasses.replace(model.conditioner, mean=mean, std=std)` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.clip import CLIPImageEncoder, preprocess_stretched
from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.condition import Condition
from ldm_core.conditioners.fields import Fields, exactly_one, noise_level, split_fields
from ldm_core.conditioners.noise_augmentation import per_image, with_noise
from ldm_core.conditioners.text import TextConditioner
from ldm_core.nn.blocks import timestep_embedding
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from ldm_core.support.limits import MAX_SIZE, is_number, require, require_bool, require_whole
from ldm_core.support.printable import shown

SOURCES = ("image", "images", "embedding", "embeddings")
FIELDS = (*SOURCES, "weights", "noise_level", "mixture_noise_level")


SCHEDULE = NoiseScheduleConfig(beta_schedule="cosine")


@dataclass(frozen=True)
class UnclipConfig:
    """The vectors and their noise, and what else a file contains.

    width: of image vectors, half of y's. noise_schedule: its timesteps are the noise levels.
    image_encoder: of the file's image encoder; None: vectors are given. statistics: whether mean and std of
        the vectors are not 0 and 1.
    """

    width: int = 1024
    noise_schedule: NoiseScheduleConfig = SCHEDULE
    image_encoder: ImageEncoderConfig | None = None
    statistics: bool = False

    def __post_init__(self) -> None:
        require_whole("unclip", self, "width", 2, MAX_SIZE)
        require(
            self.width % 2 == 0, f"unclip: width must be even, half sines and half cosines, not {self.width}"
        )
        require(
            isinstance(self.noise_schedule, NoiseScheduleConfig),
            f"unclip: noise_schedule must be a NoiseScheduleConfig, not {shown(self.noise_schedule)}",
        )
        require_bool("unclip", self, "statistics")
        encoder = self.image_encoder
        require(
            encoder is None
            or (isinstance(encoder, ImageEncoderConfig) and encoder.projection_dim == self.width),
            f"unclip: image_encoder must be an ImageEncoderConfig with projection_dim {self.width}, not "
            f"{shown(encoder)}",
        )

    @property
    def vector_dim(self) -> int:
        return 2 * self.width


class UnclipNetwork(nn.Module):
    """The conditioner's weights: an image encoder, and mean and std of vectors (width,), or None."""

    def __init__(
        self, image_encoder: nn.Module | None = None, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.mean, self.std = (
            None if value is None else nn.Parameter(value, requires_grad=False) for value in (mean, std)
        )


@dataclass(frozen=True)
class _Row:
    """What one image needs: normalised pixels (n, 3, S, S) or embeddings (n, width), and numbers."""

    pixels: Tensor | None
    embeddings: Tensor | None
    weights: list[float]
    level: int
    mixture_level: int | None


@dataclass(frozen=True, eq=False)
class Unclip:
    """Pictures and prompts as a Condition with context and vector (B, 2 width).

    Inputs: a mapping, or a list of mappings, with one of these sources:

        "image"         a PIL image or a tensor (3, H, W) in [0, 1]
        "images"        a list of them, to be mixed
        "embedding"     a CLIP embedding (width,), not normalised
        "embeddings"    several (n, width), to be mixed

    and optionally "prompt" (by default empty), "noise_level" (0), "weights" of a mixture's members (equal),
    and "mixture_noise_level", with which the mixture is noised again. A picture alone is {"image": picture}.
    A prompt alone, as for guidance, gives a vector of zeros.

    mean, std: of the embeddings, each a vector (width,) or a number.
    `config` is adapted to the image encoder and the statistics.
    """

    text: TextConditioner
    image_encoder: CLIPImageEncoder | None = None
    config: UnclipConfig = UnclipConfig()
    mean: Tensor | float = 0.0
    std: Tensor | float = 1.0
    schedule: NoiseSchedule = field(init=False, repr=False)
    network: UnclipNetwork = field(init=False, repr=False)

    unconditional: ClassVar[str] = ""
    guidance_scale: ClassVar[float] = 10.0
    draws_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", NoiseSchedule(self.config.noise_schedule))
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not is_number(value):
                rows = _vectors(value, self.config.width, name)
                require(len(rows) == 1, f"expected {name} as one vector, got {len(rows)}")
                object.__setattr__(self, name, rows[0])
        require(bool(torch.as_tensor(self.std).gt(0).all()), "expected std to be positive")
        given = (self.mean, self.std)
        statistics = any(isinstance(value, Tensor) for value in given) or given != (0, 1)
        numbers = [torch.as_tensor(value).float() for value in given] if statistics else []
        vectors = [value.expand(self.config.width).contiguous() for value in numbers]
        object.__setattr__(self, "network", UnclipNetwork(self.image_encoder, *vectors))
        encoder = None if self.image_encoder is None else self.image_encoder.config
        config = replace(self.config, image_encoder=encoder, statistics=statistics)
        object.__setattr__(self, "config", config)

    @property
    def modules(self) -> dict[str, nn.Module]:
        has_weights = any(True for _ in self.network.parameters())
        return {**self.text.modules, **({"conditioner": self.network} if has_weights else {})}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        return len(self._parts(inputs, name)[0])

    def __call__(self, inputs: Any, generators: Generators = None) -> Condition:
        """One row per generator. Each input may have several; None: one with a random seed for each input.

        Prompts alone, which have no noise, have one row each.
        """
        prompts, rows = self._parts(inputs, "inputs")
        text = self.text(prompts)
        if rows is None:
            return Condition(context=text.context, vector=torch.zeros(len(prompts), 2 * self.config.width))
        numbers, draws = per_image(generators, len(rows))
        embedded = [self._embedded(row) for row in rows]
        vectors = [self._mixture(rows[k], embedded[k], draw) for k, draw in zip(numbers, draws)]
        return Condition(context=text[numbers].context, vector=torch.cat(vectors))

    def noised(self, embeddings: Tensor, level: int, generator: Generators = None) -> Tensor:
        """y of CLIP embeddings: (B, width) -> (B, 2 width). At level 0 the embeddings are still noised."""
        levels = torch.full((len(embeddings),), level)
        z = with_noise(self.schedule, (embeddings - self.mean) / self.std, levels, generator)
        emb = timestep_embedding(levels, self.config.width)
        return torch.cat([z * self.std + self.mean, emb.to(z)], dim=1)

    def _embedded(self, row: _Row) -> Tensor:
        """The embeddings of one input (n, width), float32 on the CPU."""
        if row.embeddings is not None:
            return row.embeddings
        assert self.image_encoder is not None
        assert row.pixels is not None
        weight = next(self.image_encoder.parameters())
        return self.image_encoder(row.pixels.to(weight)).float().cpu()

    def _mixture(self, row: _Row, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        """y of one image (1, 2 width): the weighted mean over the input's embeddings."""
        weights = torch.tensor([row.weights]) / math.fsum(row.weights)  # (1, n)
        y = weights @ self.noised(embeddings, row.level, generator)
        if row.mixture_level is not None:
            y = self.noised(y[:, : self.config.width], row.mixture_level, generator)
        return y

    def _parts(self, inputs: Any, name: str) -> tuple[list[str], list[_Row] | None]:
        prompts, rows = split_fields(inputs, name, FIELDS)
        return prompts, None if rows is None else [self._row(row, name) for row in rows]

    def _row(self, row: Fields, name: str) -> _Row:
        source = exactly_one(row, name, SOURCES)
        pixels = embeddings = None
        if source.startswith("image"):
            pixels = self._pixels(row[source], f"{name}: {source}")
        else:
            embeddings = _vectors(row[source], self.config.width, f"{name}: {source}")
        members = pixels if embeddings is None else embeddings
        assert members is not None
        if not source.endswith("s") and len(members) != 1:
            raise ValueError(f"{name}: expected one {source}, got {len(members)}; {source}s are mixed")
        levels = len(self.schedule)
        again = row.get("mixture_noise_level")
        return _Row(
            pixels,
            embeddings,
            _weights(row.get("weights"), len(members), name),
            noise_level(row, "noise_level", 0, levels, name),
            None if again is None else noise_level(row, "mixture_noise_level", 0, levels, name),
        )

    def _pixels(self, images: Any, name: str) -> Tensor:
        if self.image_encoder is None:
            raise ValueError(f"{name}: there is no image encoder; expected embeddings in place of images")
        try:
            return preprocess_stretched(images, self.image_encoder.config, antialias=True)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _vectors(values: Any, width: int, name: str) -> Tensor:
    """Vectors (width,) or (n, width), or a list of them, as (n, width) in float32 on the CPU."""
    if isinstance(values, Sequence) and values and all(isinstance(value, Tensor) for value in values):
        return torch.cat([_vectors(value, width, name) for value in values])
    rows = values[None] if isinstance(values, Tensor) and values.ndim == 1 else values
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name}: expected vectors of {width} numbers, ({width},) or (n, {width}), got {found}"
        )
    if not rows.is_floating_point() or not bool(rows.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {rows.dtype} or NaN or infinity")
    return rows.detach().float().cpu()


def _weights(weights: Any, count: int, name: str) -> list[float]:
    if weights is None:
        return [1.0] * count
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    valid = isinstance(weights, list | tuple) and len(weights) == count
    if not valid or not all(is_number(w) and w >= 0 for w in weights) or not 0 < math.fsum(weights) < 1e30:
        raise ValueError(
            f"{name}: expected {count} weights of 0 or more, with a positive sum, got {shown(weights)}"
        )
    return [float(weight) for weight in weights]
