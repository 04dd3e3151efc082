"""All conditioning inputs of a U-Net, besides the noisy latent and the timestep, as one value.

Latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.3) conditions the U-Net in three ways:

    context   cross-attention: a sequence of vectors that the U-Net's features attend to
    vector    added to the timestep embedding: one vector or class label per image
    concat    input channels that are concatenated to the noisy latent

GLIGEN (Li et al. 2023, arXiv:2301.07093) adds a fourth:

    objects   tokens of objects with boxes, for gated self-attention

CompVis's counterpart is `DiffusionWrapper` with its `conditioning_key`: "crossattn", "adm", "concat" or
"hybrid".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm_core.nn.kept_context import KeptContext

Rows = slice | Sequence[int]
# What a row is in a sampling run: (number of the image, whether it is the conditional side of guidance).
Side = tuple[int, bool]
DIMENSIONS = {"context": (3,), "vector": (1, 2), "concat": (4,), "objects": (3,)}  # of each field


@dataclass(frozen=True, eq=False)
class Condition:
    """Fields with one row per image, each optional; for an unconditional model all of them are None.

    context: (B, M, width). vector: (B, D), or labels as a LongTensor (B,). concat: (B, C', h, w).
    objects: (B, N, width), with a context.
    Raises ValueError for other types or shapes, and if the numbers of rows differ.
    """

    context: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    objects: Tensor | None = None
    # The context's keys and values, and what each row is, valid during one run. Only indexing and `cat` pass
    # them on.
    kept: KeptContext | None = field(default=None, init=False, repr=False)
    sides: tuple[Side, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, dims in DIMENSIONS.items():
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
        return {name: getattr(self, name) for name in DIMENSIONS if getattr(self, name) is not None}

    @property
    def rows(self) -> int | None:
        """The number of images; None for an empty Condition, which fits any number."""
        return next((len(value) for value in self._fields().values()), None)

    def __getitem__(self, rows: Rows) -> Condition:
        """The Condition of the selected images. rows: a slice or a list of row numbers, which may repeat."""
        chosen = Condition(**{name: value[rows] for name, value in self._fields().items()})
        sides = self.sides
        if sides is not None:
            sides = sides[rows] if isinstance(rows, slice) else tuple(sides[row] for row in rows)
        return chosen._of_a_run(None if self.kept is None else self.kept[rows], sides)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Move to a device and cast floating-point tensors. Class labels keep their dtype."""
        return Condition(
            **{
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in self._fields().items()
            }
        )

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Concatenate the rows of several Conditions. Raises ValueError if their fields differ."""
        names = [tuple(one._fields()) for one in conditions]
        if len(set(names)) > 1:
            found = " and ".join(", ".join(one) or "nothing" for one in dict.fromkeys(names))
            raise ValueError(f"Condition.cat: expected conditions of the same fields, got {found}")
        joined = Condition(**{n: torch.cat([getattr(one, n) for one in conditions]) for n in names[0]})
        known = [one.sides for one in conditions if one.sides is not None]
        sides = tuple(side for one in known for side in one) if len(known) == len(conditions) else None
        return joined._of_a_run(KeptContext.cat([one.kept for one in conditions]), sides)

    def having(self, *, concat: Tensor | None = None, objects: Tensor | None = None) -> Condition:
        """A copy with these fields, or without them, whose context keeps its keys and values."""
        fields = {**self._fields(), "concat": concat, "objects": objects}
        return Condition(**fields)._of_a_run(self.kept, self.sides)

    def keeping(self, kept: KeptContext) -> Condition:
        """A copy that holds the keys and values of its context."""
        return Condition(**self._fields())._of_a_run(kept, self.sides)

    def on_side(self, is_conditional: bool, count: int) -> Condition:
        """A copy for images 0 … count - 1 of a run, on one side of guidance."""
        sides = tuple((image, is_conditional) for image in range(count))
        return Condition(**self._fields())._of_a_run(self.kept, sides)

    def _of_a_run(self, kept: KeptContext | None, sides: tuple[Side, ...] | None) -> Condition:
        """This new Condition with the fields that are valid during one run."""
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "sides", sides)
        return self
