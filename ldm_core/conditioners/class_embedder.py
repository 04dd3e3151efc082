"""Class labels as a Condition: each label is looked up in a table, and the U-Net attends to its row.

The class-conditional models of the latent diffusion paper (arXiv:2112.10752, section 4.4 and table 10) have
this tau_theta. CompVis's counterpart is `ClassEmbedder` of `ldm.modules.encoders.modules`. The later ImageNet
model (cin256-v2) has one class more than ImageNet, for guidance: the label that replaced others in training.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.class_labels import as_labels
from ldm_core.support.limits import MAX_ROWS, MAX_SIZE, require_whole
from ldm_core.support.printable import few, shown

Names = Mapping[str, int] | Sequence[str]


@dataclass(frozen=True)
class ClassEmbedderConfig:
    """The table's size. null_class: the label that means "no class"; None: the model has none."""

    classes: int = 1001
    width: int = 512
    null_class: int | None = None

    def __post_init__(self) -> None:
        part = "class embedder"
        require_whole(part, self, "classes", 1, MAX_ROWS)
        require_whole(part, self, "width", 1, MAX_SIZE)
        if self.null_class is not None:
            require_whole(part, self, "null_class", 0, self.classes - 1)

    @property
    def context_dim(self) -> int:
        """The width of the context."""
        return self.width


class ClassEmbedding(nn.Module):
    """The table of one vector per class: LongTensor (B,) -> (B, 1, width)."""

    def __init__(self, config: ClassEmbedderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        """LongTensor (B,) -> (B, 1, width)."""
        return self.embedding(labels)[:, None]


@dataclass(frozen=True)
class ClassEmbedder:
    """Class labels or names of classes as a Condition with context (B, 1, width).

    names: the name of each class in the order of the labels, or a mapping from names to labels, or a function
        that returns either when a name is first needed. Upper and lower case are equal, and each part of a
        name with commas ("tench, Tinca tinca") is a name, too.
        Raises ValueError if there are more names than classes, or a label is outside the table.
    """

    network: ClassEmbedding
    names: Names | Callable[[], Names] | None = None

    guidance_scale: ClassVar[float] = 3.0

    def __post_init__(self) -> None:
        if not callable(self.names):
            _ = self._labels_of  # raises ValueError for other names

    @cached_property
    def _labels_of(self) -> dict[str, list[int]]:
        names = self.names() if callable(self.names) else self.names
        return _labels_by_name(names, self.config.classes)

    @property
    def config(self) -> ClassEmbedderConfig:
        """The number of classes and the width of a vector."""
        return self.network.config

    @property
    def unconditional(self) -> int | None:
        """The class that stands for none, of guidance; None: no guidance."""
        return self.config.null_class

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return {"conditioner": self.network}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(self.labels(inputs, name))

    def __call__(self, inputs: int | str | Sequence[int | str] | Tensor) -> Condition:
        device = self.network.embedding.weight.device
        return Condition(context=self.network(torch.tensor(self.labels(inputs), device=device)))

    def labels(self, inputs: Any, name: str = "inputs") -> list[int]:
        """One or several labels or names as labels. Raises ValueError for an unknown or ambiguous name."""
        values = [inputs] if isinstance(inputs, str) else inputs
        if isinstance(values, Sequence):
            values = [self._label(value) if isinstance(value, str) else value for value in values]
        return as_labels(values, self.config.classes, name)

    def _label(self, name: str) -> int:
        known = self._labels_of
        if not known:
            raise ValueError(
                f"expected class labels in 0..{self.config.classes - 1}, got the name {shown(name)}; this "
                "model does not know the names of its classes (names= of ClassEmbedder gives them)"
            )
        labels = known.get(_plain(name), [])
        if len(labels) > 1:
            raise ValueError(f"{shown(name)} is the name of the classes {few(list(map(str, labels)))}")
        if not labels:
            close = difflib.get_close_matches(_plain(name[:100]), known, n=3)
            hint = f"; similar names are {few([shown(one) for one in close])}" if close else ""
            raise ValueError(f"there is no class with the name {shown(name)}{hint}")
        return labels[0]


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _labels_by_name(names: Names | None, classes: int) -> dict[str, list[int]]:
    """The labels of every name. A full name precedes the parts of others."""
    if names is None:
        return {}
    if isinstance(names, str) or not isinstance(names, Mapping | Sequence):
        raise ValueError(
            f"expected names as a list of strings or a mapping from names to labels, got {shown(names)}"
        )
    pairs = list(names.items()) if isinstance(names, Mapping) else [(n, i) for i, n in enumerate(names)]
    for name, _ in pairs:
        if not isinstance(name, str):
            raise ValueError(f"expected the name of a class as a string, got {shown(name)}")
    labels = as_labels([label for _, label in pairs], classes, "the labels of names")
    full: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for (name, _), label in zip(pairs, labels):
        full.setdefault(_plain(name), []).append(label)
        for part in name.split(",") if "," in name else []:
            parts.setdefault(_plain(part), []).append(label)
    return {**{name: sorted(set(found)) for name, found in parts.items() if name}, **full}
