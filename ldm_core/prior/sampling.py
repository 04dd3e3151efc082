"""Sampling of the prior: a text to the CLIP embedding of a picture (arXiv:2204.06125, section 2.2).

    x_T ~ N(0, I),   z_0 = clamp(z_u + s (z_c - z_u), -r, r) in each step of DDPM,   e = std x_0 + mean

z_c, z_u: the network's predictions for the text and for the empty one (classifier-free guidance); r: 5 in
Karlo. The noise schedule is the cosine one of Nichol and Dhariwal 2021 (arXiv:2102.09672), and the n
timesteps are evenly spaced from the first to the last. Counterparts: Karlo's prior, diffusers'
`UnCLIPPipeline` with `UnCLIPScheduler`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.noise import Generators, generators, image_seeds, randn
from ldm_core.noise_schedule import Denoiser, NoiseSchedule, NoiseScheduleConfig
from ldm_core.prior.network import PriorTransformer
from ldm_core.schedulers import DDPM, Scheduler
from ldm_core.schedulers.base import adds_noise
from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown
from ldm_core.support.prompts import as_prompts

SCHEDULE = NoiseScheduleConfig(beta_schedule="cosine")
SCHEDULER = DDPM(spacing="linspace")


class Texts(NamedTuple):
    """What the network takes of B texts: embeddings (B, D), hidden states (B, N, width), mask (B, N)."""

    embeddings: Tensor
    hidden: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Prior:
    """A prior with the text encoder of its CLIP; a call draws embeddings of pictures.

    text_encoder: with a projection to CLIP's joint space. tokenizer: its own.
    steps: of the scheduler, 2 or more. guidance_scale: 1 disables guidance.
    scheduler: `DDPM(spacing="linspace")` is diffusers' `UnCLIPScheduler`.
    clip_range: r, the bound of normalised predictions.
    Raises ValueError for a text encoder without projection or of other sizes than the network's, and for
    settings out of range.
    """

    network: PriorTransformer
    text_encoder: CLIPTextEncoder
    tokenizer: CLIPTokenizer
    steps: int = 25
    guidance_scale: float = 4.0
    scheduler: Scheduler = SCHEDULER
    noise_schedule: NoiseScheduleConfig = SCHEDULE
    clip_range: float = 5.0

    def __post_init__(self) -> None:
        own, text = self.network.config, self.text_encoder.config
        found = (text.projection_dim, text.width, text.context_length)
        wanted = (own.embedding_dim, own.text_width, own.context_length)
        if found != wanted:
            raise ValueError(
                "expected the text encoder of the prior's CLIP, with projection_dim, width and "
                f"context_length {wanted}, got {found}"
            )
        most = self.noise_schedule.timesteps
        if not is_whole(self.steps, 2, most):
            raise ValueError(f"the prior's steps must be an int in 2..{most}, not {shown(self.steps)}")
        for name in ("guidance_scale", "clip_range"):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (name == "clip_range" and value == 0):
                raise ValueError(f"the prior's {name} must be a positive number, not {shown(value)}")

    @property
    def width(self) -> int:
        """D, of embeddings."""
        return self.network.config.embedding_dim

    @property
    def module(self) -> nn.Module:
        """Both networks, to be moved together."""
        return nn.ModuleDict({"network": self.network, "text_encoder": self.text_encoder})

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        generator: Generators = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw one embedding for each prompt: (B, D), float32 on the CPU, not normalised to any length.

        negative_prompt: what guidance moves away from.
        seed: row k uses seed + k, or seed[k]. generator: one for all rows or one per row, instead of a seed.
        noise: x_T (B, D), standard normal, instead of the generators' first numbers.
        Raises ValueError for other prompts, and for noise of another shape.
        """
        prompts = list(as_prompts(prompts))
        draws = generators(image_seeds(seed, len(prompts))) if generator is None else generator
        shape = (len(prompts), self.width)
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(f"the prior's noise must be of {shape}, got {tuple(noise.shape)}")
        weight = self.network.out.weight
        x = (randn(shape, draws) if noise is None else noise.float()).to(weight.device)
        predict = Denoiser(self._guided(prompts, negative_prompt), NoiseSchedule(self.noise_schedule), "x0")
        history = None
        for t, t_prev in self.scheduler.timesteps(predict.schedule, self.steps):
            drawn = t_prev != -1 and adds_noise(self.scheduler)
            fresh = randn(shape, draws).to(x) if drawn else None
            step = self.scheduler.step(predict, x, t, t_prev, history, fresh)
            x, history = step.x, step.history
        return self.network.embeddings(x).float().cpu()

    @torch.no_grad()
    def embed_text(self, prompts: str | Sequence[str]) -> Tensor:
        """CLIP's embeddings of texts: (B, D), float32 on the CPU."""
        return self.encode(as_prompts(prompts)).embeddings.float().cpu()

    def encode(self, prompts: Sequence[str]) -> Texts:
        """The texts as the network takes them."""
        ids = self.tokenizer(prompts)
        # The end token has the largest id. No other token sees the padding after it: attention is causal.
        ends = ids.argmax(dim=1, keepdim=True)
        mask = torch.arange(ids.shape[1]) <= ends
        tokens = ids[:, : int(ends.max()) + 1].to(self.text_encoder.final_norm.weight.device)
        hidden = self.text_encoder(tokens, clip_skip=0)
        hidden = F.pad(hidden, (0, 0, 0, ids.shape[1] - tokens.shape[1]))
        return Texts(self.text_encoder.embed(tokens), hidden, mask.to(hidden.device))

    def _guided(self, prompts: Sequence[str], negative_prompt: str) -> Callable[[Tensor, float], Tensor]:
        """The guided and bounded prediction of z_0 as a function of x and t."""
        weight, scale, bound = self.network.out.weight, self.guidance_scale, self.clip_range
        guides = scale != 1
        texts = [*([negative_prompt] * len(prompts) if guides else []), *prompts]
        text, hidden, mask = self.encode(texts)
        text, hidden, mask = text.to(weight), hidden.to(weight), mask.to(weight.device)

        def guided(x: Tensor, t: float) -> Tensor:
            both = torch.cat([x, x]) if guides else x
            z0 = self.network(both.to(weight), t, text, hidden, mask).to(x.dtype)
            if guides:
                away, towards = z0.chunk(2)
                z0 = away + scale * (towards - away)
            return z0.clamp(-bound, bound)

        return guided
