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
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.clip import CLIPImageEncoder
from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.condition import Condition
from ldm_core.conditioners.fields import split_fields
from ldm_core.conditioners.image_space import difference, spherical_mean, turned
from ldm_core.conditioners.noise_augmentation import per_image, with_noise
from ldm_core.conditioners.text import TextConditioner
from ldm_core.conditioners.unclip_inputs import FIELDS, Reader, Row, vectors
from ldm_core.nn.blocks import timestep_embedding
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from ldm_core.prior.sampling import Prior
from ldm_core.support.limits import MAX_SIZE, is_number, require, require_bool, require_whole
from ldm_core.support.printable import shown

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
        """The width of the vector: an embedding, and its noise level as an embedding."""
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


@dataclass(frozen=True, eq=False)
class Unclip:
    """Pictures and prompts as a Condition with context and vector (B, 2 width).

    Inputs: a mapping, or a list of mappings, with one of these sources:

        "image"         a PIL image or a tensor (3, H, W) in [0, 1]
        "images"        a list of them, to be mixed
        "embedding"     a CLIP embedding (width,), not normalised
        "embeddings"    several (n, width), to be mixed
        "text"          a text, for which the prior draws an embedding
        "mix"           pairs of an image, an embedding (width,) or a text, and a weight, to be mixed on the
                        sphere (`ldm_core.conditioners.image_space`)

    and optionally "prompt" (by default empty), "noise_level" (0), "weights" of a mixture's members (equal),
    and "mixture_noise_level", with which the mixture is noised again. The embeddings are turned from the text
    "away" (empty) towards the text "towards", by the share "amount" (0.3) of the angle. A picture alone is
    {"image": picture}. A prompt alone, as for guidance, gives a vector of zeros.

    mean, std: of the embeddings, each a vector (width,) or a number.
    prior: draws embeddings for texts, and has the text encoder for differences; without it, that of the
        prompts serves if its embeddings have the same width.
    `config` is adapted to the image encoder and the statistics.
    """

    text: TextConditioner
    image_encoder: CLIPImageEncoder | None = None
    config: UnclipConfig = UnclipConfig()
    mean: Tensor | float = 0.0
    std: Tensor | float = 1.0
    prior: Prior | None = None
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
                rows = vectors(value, self.config.width, name)
                require(len(rows) == 1, f"expected {name} as one vector, got {len(rows)}")
                object.__setattr__(self, name, rows[0])
        if self.prior is not None and self.prior.width != self.config.width:
            raise ValueError(
                f"expected a prior of embeddings of {self.config.width} numbers, got {self.prior.width}"
            )
        require(bool(torch.as_tensor(self.std).gt(0).all()), "expected std to be positive")
        given = (self.mean, self.std)
        statistics = any(isinstance(value, Tensor) for value in given) or given != (0, 1)
        numbers = [torch.as_tensor(value).float() for value in given] if statistics else []
        given_rows = [value.expand(self.config.width).contiguous() for value in numbers]
        object.__setattr__(self, "network", UnclipNetwork(self.image_encoder, *given_rows))
        encoder = None if self.image_encoder is None else self.image_encoder.config
        config = replace(self.config, image_encoder=encoder, statistics=statistics)
        object.__setattr__(self, "config", config)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        has_weights = any(True for _ in self.network.parameters())
        own = {"conditioner": self.network} if has_weights else {}
        return {**self.text.modules, **own, **({} if self.prior is None else {"prior": self.prior.module})}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
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
        encoded = [self._encoded(row) for row in rows]
        imagined = self._imagined([rows[k] for k in numbers], draws)
        made = [
            self._vector(rows[k], _joined(encoded[k], drawn), draw)
            for k, draw, drawn in zip(numbers, draws, imagined)
        ]
        return Condition(context=text[numbers].context, vector=torch.cat(made))

    def noised(self, embeddings: Tensor, level: int, generator: Generators = None) -> Tensor:
        """y of CLIP embeddings: (B, width) -> (B, 2 width). At level 0 the embeddings are still noised."""
        levels = torch.full((len(embeddings),), level)
        z = with_noise(self.schedule, (embeddings - self.mean) / self.std, levels, generator)
        emb = timestep_embedding(levels, self.config.width)
        return torch.cat([z * self.std + self.mean, emb.to(z)], dim=1)

    def _encoded(self, row: Row) -> list[Tensor | None]:
        """The embeddings (n, width) of an input's members, float32 on the CPU; None for texts."""
        return [None if isinstance(member, str) else self._embedded(member) for member in row.members]

    def _embedded(self, member: Tensor) -> Tensor:
        if member.ndim == 2:
            return member
        assert self.image_encoder is not None
        weight = next(self.image_encoder.parameters())
        return self.image_encoder(member.to(weight)).float().cpu()

    def _imagined(self, rows: list[Row], draws: list[torch.Generator]) -> list[list[Tensor]]:
        """The prior's embeddings (1, width) of each image's texts, drawn together."""
        texts = [(text, draw) for row, draw in zip(rows, draws) for text in row.texts]
        if not texts:
            return [[] for _ in rows]
        assert self.prior is not None
        found = self.prior([text for text, _ in texts], generator=[draw for _, draw in texts]).split(1)
        ends = list(accumulate((len(row.texts) for row in rows), initial=0))
        return [list(found[start:end]) for start, end in pairwise(ends)]

    def _vector(self, row: Row, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        """y of one image (1, 2 width): the weighted mean over the input's embeddings."""
        weights = torch.tensor([row.weights]) / math.fsum(row.weights)  # (1, n)
        if row.on_sphere:
            embeddings, weights = spherical_mean(embeddings, weights[0])[None], torch.ones(1, 1)
        if row.change is not None:
            towards, away = self._text_vectors([row.change.towards, row.change.away])
            embeddings = turned(embeddings, difference(towards, away), row.change.amount)
        y = weights @ self.noised(embeddings, row.level, generator)
        if row.mixture_level is not None:
            y = self.noised(y[:, : self.config.width], row.mixture_level, generator)
        return y

    def _text_vectors(self, texts: list[str]) -> Tensor:
        """CLIP's embeddings of texts, (B, width), float32 on the CPU."""
        if self.prior is not None:
            return self.prior.embed_text(texts)
        encoder: Any = self.text.text_encoder
        tokens = self.text.tokenizer(texts).to(next(encoder.parameters()).device)
        with torch.no_grad():
            return encoder.embed(tokens).float().cpu()

    def _parts(self, inputs: Any, name: str) -> tuple[list[str], list[Row] | None]:
        prompts, rows = split_fields(inputs, name, FIELDS)
        if rows is None:
            return prompts, None
        own = getattr(getattr(self.text.text_encoder, "config", None), "projection_dim", None)
        reader = Reader(
            None if self.image_encoder is None else self.image_encoder.config,
            self.config.width,
            len(self.schedule),
            self.prior is not None,
            self.prior is not None or own == self.config.width,
        )
        return prompts, [reader.row(row, name) for row in rows]


def _joined(encoded: list[Tensor | None], imagined: list[Tensor]) -> Tensor:
    """The embeddings of one image's members (n, width), with the prior's in place of None."""
    drawn = iter(imagined)
    return torch.cat([next(drawn) if one is None else one for one in encoded])
