"""DeepCache: compute the deep part of the U-Net at some steps only, and reuse its features at the others.

    fast = dataclasses.replace(model, unet=DeepCache(model.unet, interval=3))
    Sampler(fast).txt2img("a cat")

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv:2312.00858, section 3.2 and
figure 4). The deep features of a U-Net change little from step to step. Every `interval`-th step therefore
computes the whole network and stores the features that enter the last blocks. The other steps compute only
the first blocks of the downsampling path and the last blocks of the upsampling path, and use the stored
features.

A U-Net is called with x, t and context only, so the cache has to find the sampling run that a call continues
from these arguments (see `DeepCache`).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.transforms import transforming
from ldm_core.unet.encoder import Context
from ldm_core.unet.network import UNet
from ldm_core.unet.residuals import Residuals, plus

# A cosine between noisy latents. One step apart it is 0.99 (DDIM in 25 steps) to 0.37 (ancestral Euler in 5);
# between images with different noise it is 0 +- 0.03 for 16 x 16 latents, and closer to 0 for larger ones.
NEAR = 0.3


@dataclass(frozen=True)
class _Walk:
    """The state of a sampling run ("walk"): its last call, and the features of its last whole evaluation."""

    t: float
    age: int  # steps since that evaluation
    direction: Tensor  # of x: (B, C * h * w), of length 1
    shape: torch.Size
    context: Tensor | None
    y: Tensor | None
    features: Tensor


class DeepCache(nn.Module):
    """A U-Net that reuses its deep features; fits `ldm_core.protocols.NoisePredictor`.

    unet: a `UNet` of this package, which is not modified. interval: the whole network is evaluated at steps
    0, interval, 2 * interval, … of each walk; 1 is the plain U-Net. blocks: the number of blocks of the
    finest level that the other steps compute in the downsampling path, 0..num_res_blocks, and one more in the
    upsampling path; 1 is the paper's default. Raises ValueError for another kind of U-Net and for numbers
    outside these ranges.

    A call continues the walk whose last call had a higher t, the same context, y and shape, and the most
    similar x, because a step changes x little and other images have different noise. The two halves of
    guidance, the chunks of a batch and interleaved runs are thus distinguished, and a result does not depend
    on earlier runs. A call that continues no walk starts a new one and deletes the walks at a lower t. One
    case is ambiguous: a run that starts at little noise, as image-to-image does, can be taken for an
    interrupted run with the same prompt and a similar image. `reset` deletes all walks and frees their
    memory. If the rows of t differ, if gradients are recorded, or inside a `torch.func` transform, the plain
    U-Net is computed.

    Threads may share an instance; each thread has its own walks.
    """

    takes_kept_context = True
    takes_residuals = True

    def __init__(self, unet: UNet, interval: int = 3, *, blocks: int = 1) -> None:
        super().__init__()
        if not isinstance(unet, UNet):
            raise ValueError(f"DeepCache needs a U-Net of this package, not {type(unet).__name__}")
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval must be a whole number of steps, 1 or more, not {interval!r}")
        most = unet.config.num_res_blocks
        if not isinstance(blocks, int) or not 0 <= blocks <= most:
            raise ValueError(f"blocks must be in 0..{most}, this U-Net's on a level, not {blocks!r}")
        self.unet, self.interval, self.blocks = unet, interval, blocks
        self.reset()

    def reset(self) -> None:
        """Delete all walks of all threads and their stored features."""
        self._kept = threading.local()

    @property
    def _walks(self) -> list[_Walk]:
        """The walks of the current thread."""
        walks: list[_Walk] = getattr(self._kept, "walks", [])
        return walks

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.reset()  # a copy starts without walks

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Context = None,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Same arguments, shapes and errors as `UNet.forward`."""
        level = _level(t, x)
        if self.interval == 1 or level is None or torch.is_grad_enabled() or transforming():
            return self.unet(x, t, context, y, residuals)
        told = context if context is None or isinstance(context, Tensor) else context.tensor
        found = self._find(x, level, told, y)
        if found is not None and found.age + 1 < self.interval:
            prediction = self.shallow(x, t, context, found.features, y, residuals)
            now = replace(found, t=level, age=found.age + 1, direction=self._direction(x))
        else:
            prediction, features = self.whole(x, t, context, y, residuals)
            now = _Walk(level, 0, self._direction(x), x.shape, told, y, features)
        if found is None:
            kept = [walk for walk in self._walks if walk.t >= level]
        else:
            kept = [walk for walk in self._walks if walk is not found]
        self._kept.walks = [*kept, now]
        return prediction

    def _find(self, x: Tensor, level: float, context: Tensor | None, y: Tensor | None) -> _Walk | None:
        """The walk that this call continues, or None."""
        nearest, cosine = None, NEAR
        for walk in self._walks:
            if walk.t > level and walk.shape == x.shape and _same(walk.context, context) and _same(walk.y, y):
                likeness = float((walk.direction * self._direction(x)).sum(dim=1).min())
                if likeness > cosine:
                    nearest, cosine = walk, likeness
        return nearest

    def _direction(self, x: Tensor) -> Tensor:
        latent = x[:, : self.unet.config.out_channels]  # the other channels are a condition, such as a mask
        return F.normalize(latent.detach().flatten(1).float(), dim=1)

    def whole(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Context,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The U-Net's prediction, and the features that enter the last `blocks` + 1 blocks."""
        features: list[Tensor] = []
        thread = threading.get_ident()

        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            if threading.get_ident() == thread:  # another thread may be computing the same U-Net
                features.append(output)

        source = self._source()
        hook = source.register_forward_hook(keep)
        try:
            prediction = self.unet(x, t, context, y, residuals)
            if source is self.unet.mid and residuals is not None:
                return prediction, Residuals(middle=residuals.middle).added([], features[0])[1]
            return prediction, features[0]
        finally:
            hook.remove()

    def shallow(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Context,
        features: Tensor,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """The prediction from the first and the last blocks only, using the features from `whole`."""
        first, emb = self.unet.enter(x, t, y)
        skips = [first]
        blocks = _blocks(self.unet.down[0])
        for block in blocks[: self.blocks]:
            skips.append(block(skips[-1], emb, context))
        if residuals is not None:
            if residuals.features and self.blocks == len(blocks):
                skips[-1] = plus(skips[-1], residuals.features[0])
            skips = [plus(skip, one) for skip, one in zip(skips, residuals.skips)] or skips
        h = features
        for block, skip in zip(_blocks(self.unet.up[-1])[-self.blocks - 1 :], reversed(skips)):
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.unet.leave(h)

    def _source(self) -> nn.Module:
        """The module whose output enters the last `blocks` + 1 blocks."""
        *_, before, last = self.unet.down[-1], self.unet.mid, *self.unet.up
        return [before, *_blocks(last)][-self.blocks - 2]


def _blocks(level: Any) -> list[nn.Module]:
    return list(level.blocks)


def _level(t: Tensor | float, x: Tensor) -> float | None:
    """t as one number, or None if its rows differ or it is not a finite number."""
    if isinstance(t, Tensor):
        values = set(t.tolist()) if t.shape == x.shape[:1] else set()
        t = values.pop() if len(values) == 1 else math.nan
    return float(t) if isinstance(t, Real) and math.isfinite(t) else None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
