"""The conditioner of a model without conditioning: inputs are None, and the Condition is empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ldm_core.condition import Condition


@dataclass(frozen=True)
class Unconditional:
    """The conditioner of an unconditional model. `num_images` sets the number of images."""

    unconditional: ClassVar[None] = None
    modules: ClassVar[dict[str, nn.Module]] = {}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        if inputs is not None:
            raise ValueError(f"this model is unconditional: expected {name}=None, got {inputs!r:.60}")
        return 1

    def __call__(self, inputs: None = None) -> Condition:
        self.count(inputs)
        return Condition()
