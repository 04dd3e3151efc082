"""A layout for sampling in windows: each window has the layout's tokens with the window as the crop.

CompVis's counterpart is the branch of `LatentDiffusion.apply_model` for `coordinates_bbox`, which replaces
the two crop tokens of the sequence and encodes it again for each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.layout import Layout, Rectangle


@dataclass(frozen=True)
class WindowedLayout:
    """Layouts as a Condition whose context holds their tokens (B, N, 1), which `for_window` encodes.

    The inputs are those of `Layout`. With a crop, windows are parts of the crop.
    """

    layout: Layout

    unconditional: ClassVar[None] = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        return self.layout.modules

    def count(self, inputs: Any, name: str = "inputs") -> int:
        return self.layout.count(inputs, name)

    def __call__(self, inputs: Any) -> Condition:
        return Condition(context=self.layout.tokens(inputs)[:, :, None])

    def for_window(self, context: Tensor, box: Rectangle) -> Tensor:
        """Tokens (B, N, 1) -> the context (B, N, width) of the window with this box in the picture."""
        crop = torch.tensor(self.layout.crop_tokens(box), device=context.device)
        tokens = torch.cat([context[:, :-2, 0], crop.expand(len(context), 2)], dim=1)
        return self.layout.encoder(tokens)
