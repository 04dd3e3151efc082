"""Class labels as a Condition: the U-Net embeds them and adds the result to the timestep embedding.

CompVis's counterpart: `num_classes` of `UNetModel`, with the conditioning key "adm".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition


@dataclass(frozen=True)
class ClassLabels:
    """Class labels in 0..classes-1 as a Condition with vector LongTensor (B,).

    unconditional: the class that replaced labels at random in training; None: there is no such class, and no
        guidance.
    """

    classes: int
    unconditional: int | None = None
    modules: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def count(self, inputs: Any, name: str = "inputs") -> int:
        return len(self._labels(inputs, name))

    def __call__(self, inputs: int | Sequence[int] | Tensor) -> Condition:
        return Condition(vector=torch.tensor(self._labels(inputs, "inputs")))

    def _labels(self, inputs: Any, name: str) -> list[int]:
        if isinstance(inputs, Tensor):
            inputs = inputs.tolist()
        labels = [inputs] if isinstance(inputs, Integral) else inputs
        whole = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) > 0
        if not whole or not all(isinstance(n, Integral) and 0 <= int(n) < self.classes for n in labels):
            raise ValueError(
                f"expected {name} as one or several class labels in 0..{self.classes - 1}, got {inputs!r:.60}"
            )
        return [int(label) for label in labels]
