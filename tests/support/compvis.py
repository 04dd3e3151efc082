"""CompVis's samplers from their formulas, and an object with the methods of its model, over diffusers' parts.

The original's package does not run beside current versions of PyTorch. What is written here has its arguments
and formulas, so that lines which call it can run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from support.scheduler_runs import network
from torch import Tensor

from ldm_core.model import LatentDiffusion

Network = Callable[[Tensor, int], Tensor]


class CompVisSampler:
    """`make_ddim_sampling_parameters`, `p_sample_ddim` and `p_sample_plms`, line by line, in float64."""

    def __init__(self, n: int, eta: float = 0.0, network: Network = network) -> None:
        self.network, c = network, 1000 // n
        self.ddim_timesteps = np.asarray(list(range(0, 1000, c))) + 1
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        alphacums = np.cumprod(1.0 - betas, axis=0)
        self.alphas = alphacums[self.ddim_timesteps]
        self.alphas_prev = np.asarray([alphacums[0], *alphacums[self.ddim_timesteps[:-1]].tolist()])
        self.sigmas = eta * np.sqrt(
            (1 - self.alphas_prev) / (1 - self.alphas) * (1 - self.alphas / self.alphas_prev)
        )
        self.calls = 0

    def model(self, x: np.ndarray, t: int) -> np.ndarray:
        self.calls += 1
        return self.network(torch.from_numpy(x), int(t)).numpy()

    def x_prev_and_pred_x0(self, x: np.ndarray, e_t: np.ndarray, index: int, noise: Any) -> tuple[Any, Any]:
        a_t, a_prev, sigma_t = self.alphas[index], self.alphas_prev[index], self.sigmas[index]
        pred_x0 = (x - np.sqrt(1.0 - a_t) * e_t) / np.sqrt(a_t)
        dir_xt = np.sqrt(1.0 - a_prev - sigma_t**2) * e_t
        return np.sqrt(a_prev) * pred_x0 + dir_xt + sigma_t * noise, pred_x0

    def ddim_sampling(self, x: np.ndarray, noises: list[np.ndarray]) -> list[tuple[Any, Any]]:
        out = []
        for i, step in enumerate(np.flip(self.ddim_timesteps)):
            index = len(self.ddim_timesteps) - i - 1
            out.append(self.x_prev_and_pred_x0(x, self.model(x, step), index, noises[i]))
            x = out[-1][0]
        return out

    def plms_sampling(self, x: np.ndarray) -> list[tuple[Any, Any]]:
        out: list[tuple[Any, Any]] = []
        old_eps: list[np.ndarray] = []
        time_range = np.flip(self.ddim_timesteps)
        for i, step in enumerate(time_range):
            index = len(time_range) - i - 1
            t_next = time_range[min(i + 1, len(time_range) - 1)]
            e_t = self.model(x, step)
            if len(old_eps) == 0:
                x_prev, _ = self.x_prev_and_pred_x0(x, e_t, index, 0)
                e_t_prime = (e_t + self.model(x_prev, t_next)) / 2
            elif len(old_eps) == 1:
                e_t_prime = (3 * e_t - old_eps[-1]) / 2
            elif len(old_eps) == 2:
                e_t_prime = (23 * e_t - 16 * old_eps[-1] + 5 * old_eps[-2]) / 12
            else:
                e_t_prime = (55 * e_t - 59 * old_eps[-1] + 37 * old_eps[-2] - 9 * old_eps[-3]) / 24
            out.append(self.x_prev_and_pred_x0(x, e_t_prime, index, 0))
            x = out[-1][0]
            old_eps.append(e_t)
            if len(old_eps) >= 4:
                old_eps.pop(0)
        return out


class CompVisModel:
    """The methods of `LatentDiffusion` that its scripts call."""

    def __init__(self, model: LatentDiffusion) -> None:
        from support.reference import reference_parts

        self.parts = reference_parts(model)
        self.scale = model.config.latent_scale
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1.0 - betas)).float()

    def ema_scope(self) -> Any:
        return nullcontext()

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        tokens = self.parts["tokenizer"](
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return self.parts["text_encoder"](tokens.input_ids)[0]

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.parts["unet"](x, t, cond).sample

    def encode_first_stage(self, x: Tensor) -> Any:
        return self.parts["vae"].encode(x).latent_dist

    def get_first_stage_encoding(self, posterior: Any) -> Tensor:
        return self.scale * posterior.sample()

    def decode_first_stage(self, z: Tensor) -> Tensor:
        return self.parts["vae"].decode(z / self.scale).sample


class DDIMSampler:
    def __init__(self, model: CompVisModel) -> None:
        self.model = model

    def make_schedule(self, ddim_num_steps: int, ddim_eta: float = 0.0, verbose: bool = True) -> None:
        self.steps, self.eta = ddim_num_steps, ddim_eta

    def sample(
        self,
        S: int,
        batch_size: int,
        shape: list[int],
        conditioning: Tensor,
        eta: float = 0.0,
        verbose: bool = True,
        x_T: Tensor | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        self.make_schedule(S, eta, verbose)
        x = torch.randn(batch_size, *shape) if x_T is None else x_T
        return self._run(x, conditioning, unconditional_guidance_scale, unconditional_conditioning), {}

    def stochastic_encode(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        alpha = self.model.alphas_cumprod[CompVisSampler(self.steps).ddim_timesteps[int(t[0])]]
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def decode(
        self,
        x_latent: Tensor,
        cond: Tensor,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
    ) -> Tensor:
        return self._run(
            x_latent, cond, unconditional_guidance_scale, unconditional_conditioning, steps=t_start
        )

    def _run(
        self, x: Tensor, cond: Tensor, scale: float, uncond: Tensor | None, steps: int | None = None
    ) -> Tensor:
        @torch.no_grad()
        def guided(x: Tensor, t: int) -> Tensor:
            times = torch.full((len(x),), t)
            e_t = self.model.apply_model(x.float(), times, cond)
            if uncond is None or scale == 1.0:
                return e_t.double()
            e_t_uncond = self.model.apply_model(x.float(), times, uncond)
            return (e_t_uncond + scale * (e_t - e_t_uncond)).double()

        sampler = CompVisSampler(self.steps, self.eta, guided)
        sampler.ddim_timesteps = sampler.ddim_timesteps[:steps]
        return torch.from_numpy(self._sample(sampler, x.double().numpy())[-1][0]).float()

    def _sample(self, sampler: CompVisSampler, x: np.ndarray) -> list[tuple[Any, Any]]:
        assert self.eta == 0, "no noise is drawn here"
        return sampler.ddim_sampling(x, [np.zeros_like(x)] * len(sampler.sigmas))


class PLMSSampler(DDIMSampler):
    def _sample(self, sampler: CompVisSampler, x: np.ndarray) -> list[tuple[Any, Any]]:
        return sampler.plms_sampling(x)
