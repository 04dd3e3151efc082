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
from ldm_core.support.printable import shown


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
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(as_labels(inputs, self.classes, name))

    def __call__(self, inputs: int | Sequence[int] | Tensor) -> Condition:
        return Condition(vector=torch.tensor(as_labels(inputs, self.classes)))


def as_labels(inputs: Any, classes: int, name: str = "inputs") -> list[int]:
    """One or several class labels, or a tensor of them, as a list. Raises ValueError for anything else."""
    values = inputs.tolist() if isinstance(inputs, Tensor) else inputs
    labels = [values] if isinstance(values, Integral) else values
    whole = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) > 0
    if not whole or not all(_is_label(label, classes) for label in labels):
        raise ValueError(
            f"expected {name} as one or several class labels in 0..{classes - 1}, got {shown(values)}"
        )
    return [int(label) for label in labels]


def _is_label(value: Any, classes: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < classes
