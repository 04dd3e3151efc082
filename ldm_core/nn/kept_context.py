"""The keys and values of a context, made once for all steps of a sampling run.

A prompt's context is the same at every step, and so are the keys and values that each cross-attention layer
projects from it. A run of the sampler holds one `KeptContext` and hands it to the U-Net in the place of the
context; each layer leaves its keys and values in it. They live as long as the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class KeptContext:
    """Rows of a context (B, M, width), with the keys and values that layers have made from it.

    Parts of one context (by index, or joined by `cat`) share what was made.
    """

    def __init__(self, context: Tensor) -> None:
        self._context = context
        self._rows: Sequence[int] = range(len(context))
        self._made: dict[Any, tuple[Tensor, Tensor]] = {}

    @property
    def tensor(self) -> Tensor:
        """The context (B, M, width)."""
        return self._choose(self._context)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), *self._context.shape[1:]))

    def __getitem__(self, rows: slice | Sequence[int]) -> KeptContext:
        return self._part(self._rows[rows] if isinstance(rows, slice) else [self._rows[i] for i in rows])

    @staticmethod
    def cat(parts: Sequence[KeptContext | None]) -> KeptContext | None:
        """All rows of parts of one context; None where they are not parts of one."""
        first = parts[0]
        if first is None or any(part is None or part._made is not first._made for part in parts):
            return None
        return first._part([row for part in parts if part is not None for row in part._rows])

    def keys_and_values(self, layer: Any) -> tuple[Tensor, Tensor]:
        """What `layer.keys_and_values(context)` returns, made once if nothing can change it meanwhile."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not layer.projections_are_plain():
            return layer.keys_and_values(self.tensor)
        if layer not in self._made:
            self._made[layer] = layer.keys_and_values(self._context)
        k, v = self._made[layer]
        return self._choose(k), self._choose(v)

    def forget(self) -> None:
        """Make all keys and values anew when they are needed next."""
        self._made.clear()

    def _part(self, rows: Sequence[int]) -> KeptContext:
        part = KeptContext(self._context)
        part._rows, part._made = rows, self._made
        return part

    def _choose(self, x: Tensor) -> Tensor:
        """The rows of x, as a view where they follow one another."""
        rows = self._rows
        if len(rows) and list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return x[rows[0] : rows[-1] + 1]
        return x[list(rows)]
