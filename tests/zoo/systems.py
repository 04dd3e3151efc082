"""The conditions and the sampling loop of the published systems, in plain steps over `zoo.reference`.

A condition is what the U-Net gets besides x and t: (context (B, N, D), channels (B, C', h, w), y), each of
which may be None. Noise comes from outside, in the order in which it is drawn.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo import reference
from zoo.reference import Params, Tensors

import ldm_core


@dataclass(frozen=True)
class Given:
    context: Tensor | None = None
    channels: Tensor | None = None
    y: Tensor | None = None


@dataclass(frozen=True)
class System:
    """w: all tensors of a file; params: `model.params` of its YAML file; scale: of the latents."""

    w: Tensors
    params: Params
    scale: float

    @property
    def stage(self) -> Tensors:
        return self.w.at("first_stage_model.")

    @property
    def condition(self) -> Tensors:
        return self.w.at("cond_stage_model.")

    def stage_params(self, name: str) -> Any:
        return self.params[f"{name}_config"]["params"]

    def alphas(self) -> Tensor:
        return alphas(self.params["linear_start"], self.params["linear_end"])

    def unet(self, x: Tensor, t: float, given: Given) -> Tensor:
        x = x if given.channels is None else torch.cat([x, given.channels], dim=1)
        w = self.w.at("model.diffusion_model.")
        return reference.unet(w, self.stage_params("unet"), x, t, given.context, given.y)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: of a KL's posterior sample; None for a VQ, or the mean."""
        p = self.stage_params("first_stage")
        z = reference.encode(self.stage, p, image)
        if "n_embed" not in p:
            mean, std = reference.posterior(z)
            z = mean if noise is None else mean + std * noise.double()
        return z * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        return reference.decode(self.stage, self.stage_params("first_stage"), latent.double() / self.scale)

    def guided(self, x: Tensor, t: float, cond: Given, uncond: Given | None, scale: float) -> Tensor:
        if uncond is None or scale == 1:
            return self.unet(x, t, cond)
        e_c, e_u = self.unet(x, t, cond), self.unet(x, t, uncond)
        return e_u + scale * (e_c - e_u)

    def ddim(
        self,
        x: Tensor,
        cond: Given,
        uncond: Given | None = None,
        scale: float = 1.0,
        steps: int = 5,
        eta: float = 0.0,
        noises: Sequence[Tensor] = (),
    ) -> Tensor:
        """Timesteps 1 + 1000 / steps · i, from the last one; after the first one, alphas_cumprod[0]."""
        a, x = self.alphas(), x.double()
        times = [1 + i * (1000 // steps) for i in range(steps)]
        before = [a[0], *(a[t] for t in times[:-1])]
        for i, (t, a_prev) in enumerate(reversed(list(zip(times, before)))):
            a_t, out = a[t], self.guided(x, t, cond, uncond, scale)
            if self.params.get("parameterization", "eps") == "v":
                eps = a_t.sqrt() * out + (1 - a_t).sqrt() * x
            else:
                eps = out
            x0 = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
            sigma = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()
            x = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).sqrt() * eps
            if eta > 0:
                x = x + sigma * noises[i].double()
        return x


def alphas(start: float, end: float) -> Tensor:
    betas = torch.linspace(math.sqrt(start), math.sqrt(end), 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def cosine_alphas() -> Tensor:
    """The schedule squaredcos_cap_v2."""

    def a(s: float) -> float:
        return math.cos(math.pi / 2 * (s + 0.008) / 1.008) ** 2

    betas = [min(1 - a((i + 1) / 1000) / a(i / 1000), 0.999) for i in range(1000)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def noised(table: Tensor, x: Tensor, level: int, noise: Tensor) -> Tensor:
    return table[level].sqrt() * x + (1 - table[level]).sqrt() * noise.double()


def word_pieces(texts: Sequence[str], length: int = 77) -> Tensor:
    """Lower-case texts of words that the vocabulary has as a whole, and of punctuation apart from them."""
    path = Path(ldm_core.__file__).parent / "bert/data/bert-base-uncased-vocab.txt.gz"
    vocabulary = gzip.decompress(path.read_bytes()).decode().splitlines()
    number = {word: i for i, word in enumerate(vocabulary)}
    rows = [[101, *(number[word] for word in text.split()), 102] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def layout_tokens(objects: Sequence[tuple[int, float, float, float, float]]) -> Tensor:
    """Objects (class, x, y, width, height) inside of the picture as 30 triples and the whole as the crop."""

    def point(x: float, y: float) -> int:
        return round(y * 89) * 90 + round(x * 89)

    row = [t for c, x, y, w, h in objects for t in (c, point(x, y), point(x + w, y + h))]
    return torch.tensor([row + [8191] * (90 - len(row)) + [point(0, 0), point(1, 1)]])


# The conditions


def of_bert(system: System, tokens: Tensor) -> Given:
    layers = system.stage_params("cond_stage")["n_layer"]
    return Given(reference.bert(system.condition, tokens, layers))


def of_text(system: System, tokens: Tensor, layers: int) -> Given:
    return Given(reference.open_clip(system.condition, tokens, layers))


def of_classes(system: System, labels: list[int]) -> Given:
    return Given(reference.class_embedding(system.condition, labels))


def of_map(system: System, classes: Tensor) -> Given:
    p = system.stage_params("cond_stage")
    return Given(channels=reference.spatial_rescaler(system.condition, p, classes))


def of_small_picture(picture: Tensor) -> Given:
    return Given(channels=picture.double() * 2 - 1)


def of_masked_picture(system: System, picture: Tensor, mask: Tensor) -> Given:
    """LDM's inpainting: hidden pixels are black, the mask is -1 or 1 and comes last."""
    hard = (mask >= 0.5).double()
    seen = system.encode((1 - hard) * picture.double() * 2 - 1)
    rows, columns = seen.shape[2:]
    step = mask.shape[2] // rows
    small = hard[:, :, ::step, ::step][:, :, :rows, :columns]
    return Given(channels=torch.cat([seen, small * 2 - 1], dim=1))


def of_gray_picture(system: System, text: Given, picture: Tensor, mask: Tensor, noise: Tensor) -> Given:
    """Stable Diffusion's inpainting: hidden pixels are grey, the mask is 0 or 1 and comes first."""
    hard = (mask >= 0.5).double()
    seen = system.encode((picture.double() * 2 - 1) * (1 - hard), noise)
    step = mask.shape[2] // seen.shape[2]
    return Given(text.context, torch.cat([hard[:, :, ::step, ::step], seen], dim=1))


def of_vectors(vectors: Tensor) -> tuple[Given, Given]:
    """Retrieved vectors, each of length one, and zeros as the unconditional input."""
    x = vectors.double()
    x = x / (x**2).sum(-1, keepdim=True).sqrt()
    return Given(x), Given(torch.zeros_like(x))


def of_depth(text: Given, depth: Tensor, rows: int, columns: int) -> Given:
    d = F.interpolate(depth.double()[None, None], (rows, columns), mode="bicubic", align_corners=False)
    return Given(text.context, 2 * (d - d.min()) / (d.max() - d.min() + 0.001) - 1)


def of_noised_picture(text: Given, picture: Tensor, level: int, noise: Tensor) -> Given:
    channels = noised(alphas(1e-4, 0.02), picture.double() * 2 - 1, level, noise)
    return Given(text.context, channels, torch.full((len(picture),), level))


def of_image_vector(text: Given, vector: Tensor, level: int, noise: Tensor) -> Given:
    """unCLIP without statistics: the noised vector, then the embedding of the level."""
    z = noised(cosine_alphas(), vector.double()[None], level, noise)
    return Given(
        text.context, y=torch.cat([z, reference.sinusoids(torch.tensor([level]), z.shape[1])], dim=1)
    )


def draws(seed: int, *shapes: Sequence[int]) -> Iterator[Tensor]:
    """Normal numbers of one image's generator, one tensor after another."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) for shape in shapes)
