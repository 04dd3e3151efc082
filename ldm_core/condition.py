"""Everything that a U-Net is told besides the noisy latent and the timestep, as one value.

The latent diffusion paper (Rombach et al. 2022, arXiv:2112.10752, section 3.3) has three ways to condition:

    context   cross-attention: a sequence of vectors that the U-Net's features attend to
    vector    added to the timestep's embedding: a vector or a class label for each image
    concat    further input channels beside the noisy latent

CompVis's counterpart is `DiffusionWrapper` with its `conditioning_key`: "crossattn", "adm", "concat" or
"hybrid".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ldm_core.nn.kept_context import KeptContext

Rows = slice | Sequence[int]


@dataclass(frozen=True, eq=False)
class Condition:
    """One row per image in each field that is not None; an unconditional model's Condition has none.

    context: (B, M, width). vector: (B, D), or labels as a LongTensor (B,). concat: (B, C', h, w).
    Raises ValueError for fields whose numbers of rows differ.
    """

    context: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    # The context's keys and values of the run that this Condition is part of. A Condition made from this one
    # by anything but `cat` and an index has none.
    kept: KeptContext | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, dims in (("context", (3,)), ("vector", (1, 2)), ("concat", (4,))):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Tensor) or value.ndim not in dims):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                expected = " or ".join(str(n) for n in dims)
                raise ValueError(
                    f"Condition: expected {name} as a tensor of {expected} dimensions, got {found}"
                )
        rows = {name: len(value) for name, value in self._fields().items()}
        if len(set(rows.values())) > 1:
            found = ", ".join(f"{n} of {name}" for name, n in rows.items())
            raise ValueError(f"Condition: all fields must have one row per image, got {found}")

    def _fields(self) -> dict[str, Tensor]:
        names = ("context", "vector", "concat")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def rows(self) -> int | None:
        """The number of images; None for a Condition without any field, which fits every number."""
        return next((len(value) for value in self._fields().values()), None)

    def __getitem__(self, rows: Rows) -> Condition:
        """The Condition of these images: a slice, or a list of row numbers, which may repeat."""
        chosen = Condition(**{name: value[rows] for name, value in self._fields().items()})
        return chosen if self.kept is None else chosen.keeping(self.kept[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """The Condition on this device, its floating-point tensors in this type. Labels keep theirs."""
        return Condition(
            **{
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in self._fields().items()
            }
        )

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The rows of all conditions, one after the other. Raises ValueError where their fields differ."""
        names = [tuple(one._fields()) for one in conditions]
        if len(set(names)) > 1:
            found = " and ".join(", ".join(one) or "nothing" for one in dict.fromkeys(names))
            raise ValueError(f"Condition.cat: expected conditions of the same fields, got {found}")
        joined = Condition(**{n: torch.cat([getattr(one, n) for one in conditions]) for n in names[0]})
        kept = KeptContext.cat([one.kept for one in conditions])
        return joined if kept is None else joined.keeping(kept)

    def keeping(self, kept: KeptContext) -> Condition:
        """This Condition with its context's kept keys and values."""
        copy = Condition(**{f.name: getattr(self, f.name) for f in fields(self) if f.init})
        object.__setattr__(copy, "kept", kept)
        return copy
