"""Feature caching: compute the deep part of the U-Net at some steps only.

    fast = dataclasses.replace(model, unet=DeepCache(model.unet, interval=3))
    Sampler(fast).txt2img("a cat")

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv:2312.00858, section 3.2 and
figure 4). From step to step the deep features of a U-Net hardly change. So every `interval`-th step computes
the whole network and keeps the features that come up to the last blocks; the steps between compute the first
blocks of the way down and the last of the way up, and take what lies between from the kept ones.

A call says only x, t and context; of which walk it is, is told by them (see `DeepCache`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.unet import UNet


@dataclass(frozen=True)
class _Kept:
    """The features of one whole evaluation, and what it was of."""

    step: int
    shape: torch.Size
    context: Tensor
    y: Tensor | None
    features: Tensor

    def fits(self, x: Tensor, context: Tensor, y: Tensor | None) -> bool:
        return x.shape == self.shape and _same(context, self.context) and _same(y, self.y)


class DeepCache(nn.Module):
    """A U-Net that reuses its deep features; fits `ldm_core.protocols.NoisePredictor`.

    unet: a `UNet` of this package, which is not changed. interval: whole evaluations are at steps 0,
    interval, 2 * interval, … of each walk; 1 is the plain U-Net. blocks: how many of the finest level's
    blocks the other steps compute on the way down, 0..num_res_blocks, and one more on the way up; 1 is the
    paper's default. Raises ValueError for another U-Net, and for numbers outside these ranges.

    A call with a lower t than the call before is the walk's next step; with the same t, it is another part of
    the same step (the other half of guidance, the next chunk of a batch); with a higher t, a new walk starts.
    The k-th call of a step takes the features that the k-th call of an earlier one has kept, if x has that
    one's shape, and context and y its values; otherwise it computes everything. So a result does not depend
    on the walks before, with one exception: after a walk that was broken off, one that starts lower (as
    image-to-image does) with the same prompt would take its features. `reset` forgets them, and the memory
    that they take. Where the rows of t differ, and where gradients are recorded, it is the plain U-Net.
    """

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
        """Forget the walk, and the features that are kept of it."""
        self._t: float | None = None
        self._step = self._call = 0
        self._kept: dict[int, _Kept] = {}  # by the number of the call within its step

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor, y: Tensor | None = None) -> Tensor:
        """As `UNet.forward`: shapes, ranges and errors are its own."""
        level = _level(t, x)
        if self.interval == 1 or level is None or torch.is_grad_enabled():
            return self.unet(x, t, context, y)
        self._follow(level)
        kept = self._kept.get(self._call)
        if kept and self._step - kept.step < self.interval and kept.fits(x, context, y):
            return self._shallow(x, t, context, y, kept.features)
        prediction, features = self._whole(x, t, context, y)
        self._kept[self._call] = _Kept(self._step, x.shape, context, y, features)
        return prediction

    def _follow(self, level: float) -> None:
        """Find the call's place in a walk, which goes from high t to low."""
        if self._t is not None and level > self._t:
            self.reset()
        if self._t is not None and level < self._t:
            self._step, self._call = self._step + 1, 0
        elif self._t is not None:
            self._call += 1
        self._t = level

    def _whole(
        self, x: Tensor, t: Tensor | float, context: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The prediction, and the features that come to the last `blocks` + 1 blocks of the way up."""
        features: list[Tensor] = []
        hook = self._source().register_forward_hook(lambda module, args, output: features.append(output))
        try:
            return self.unet(x, t, context, y), features[0]
        finally:
            hook.remove()

    def _source(self) -> nn.Module:
        """The module whose output the last `blocks` + 1 blocks start from."""
        *_, before, last = self.unet.down[-1], self.unet.mid, *self.unet.up
        return [before, *_blocks(last)][-self.blocks - 2]

    def _shallow(
        self, x: Tensor, t: Tensor | float, context: Tensor, y: Tensor | None, features: Tensor
    ) -> Tensor:
        """The first and the last blocks alone, around these features."""
        first, emb = self.unet.enter(x, t, y)
        skips = [first]
        for block in _blocks(self.unet.down[0])[: self.blocks]:
            skips.append(block(skips[-1], emb, context))
        h = features
        for block, skip in zip(_blocks(self.unet.up[-1])[-self.blocks - 1 :], reversed(skips)):
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.unet.leave(h)


def _blocks(level: Any) -> list[nn.Module]:
    return list(level.blocks)


def _level(t: Tensor | float, x: Tensor) -> float | None:
    """t as one number; None where its rows differ, or where it is no timestep."""
    if isinstance(t, Tensor):
        values = set(t.tolist()) if t.shape == x.shape[:1] else set()
        t = values.pop() if len(values) == 1 else math.nan
    return float(t) if isinstance(t, Real) and math.isfinite(t) else None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
