"""Evaluate a U-Net in overlapping windows of the latent, for pictures larger than those of its training.

Every step of a sampler predicts in each window and takes the weighted mean (`ldm_core.windows`), so windows
agree with their neighbours from the first step on. CompVis's counterpart is `LatentDiffusion.apply_model`
with `split_input_params`; with equal weights this is MultiDiffusion (arXiv:2302.08113) for one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.support.printable import shown
from ldm_core.unet.grounding import GroundedContext
from ldm_core.windows import Place, Windows

Box = tuple[float, float, float, float]  # x, y, width, height relative to the picture
ContextFor = Callable[[Tensor, Box], Tensor]


class WindowedUNet(nn.Module):
    """A U-Net that predicts in windows; fits `ldm_core.protocols.NoisePredictor`.

    unet: any noise predictor. A latent of one window gives its result.
    windows: in latent pixels; their sizes must be sizes that the U-Net takes.
    batch_size: the number of windows per evaluation, each with all rows of x.
    context_for: maps the context and a window's box to that window's context (B, M, width); None: windows
        have the same context. Channels that are joined to x are cut with it.
    """

    def __init__(
        self, unet: Any, windows: Windows, *, batch_size: int = 1, context_for: ContextFor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, not {shown(batch_size)}")
        self.unet, self.windows, self.batch_size = unet, windows, batch_size
        self.context_for = context_for

    def forward(
        self, x: Tensor, t: Tensor | float, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Same arguments, shapes and errors as `UNet.forward`."""

        def evaluate(parts: Tensor, places: Sequence[Place]) -> Tensor:
            n = len(places)
            times = torch.cat([t] * n) if isinstance(t, Tensor) else t
            vector = () if y is None else (torch.cat([y] * n),)
            out: Tensor = self.unet(parts, times, self._contexts(context, places), *vector)
            return out

        return self.windows.apply(evaluate, x, at_once=self.batch_size)

    def _contexts(self, context: Tensor | None, places: Sequence[Place]) -> Tensor | None:
        """The contexts of several windows, one window after the other."""
        if context is None:
            return None
        if isinstance(context, GroundedContext):
            raise ValueError("boxes with words are of a whole picture: a windowed model does not take them")
        if self.context_for is None:
            return torch.cat([context] * len(places))
        return torch.cat([self.context_for(context, place.box) for place in places])
