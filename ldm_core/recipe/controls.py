"""The controls of a recipe: each a network and its hint, with how strongly and when it acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ldm_core.recipe.checks import NONE, check, read_built
from ldm_core.recipe.files import SourceFile, check_file, read_source
from ldm_core.support.printable import shown

MAX_CONTROLS = 64
GUESSES = ("original", "diffusers")


@dataclass(frozen=True)
class ControlFile:
    """A control that a picture was drawn with. `ldm_core.Control` documents the fields after the files.

    hint: its picture, as it was before it was fitted to the drawn picture's size.
    guess: None, "original" or "diffusers". global_pool: as `load_control` takes it; None: as the file says.

    Raises ValueError, naming the field, for other values.
    """

    network: SourceFile
    hint: SourceFile
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: Literal["original", "diffusers"] | None = None
    mid_only: bool = False
    global_pool: bool | None = None

    def __post_init__(self) -> None:
        for name in ("network", "hint"):
            check(f"a control's {name}", getattr(self, name), (SourceFile,), "a file's name and checksum")
            check_file(f"a control's {name}", getattr(self, name))
        for name in ("strength", "start", "end"):
            check(f"a control's {name}", getattr(self, name), (float, int), "a number")
        if not 0 <= self.start <= self.end <= 1:
            share = f"{self.start!r:.40} and {self.end!r:.40}"
            raise ValueError(f"a control's start and end must be in [0, 1], in this order, not {share}")
        if self.guess is not None and self.guess not in GUESSES:
            words = ", ".join(GUESSES)
            raise ValueError(f"a control's guess must be one of {words}, or nothing, not {shown(self.guess)}")
        check("a control's mid_only", self.mid_only, (bool,), "true or false")
        check("a control's global_pool", self.global_pool, (bool, NONE), "true, false or nothing")


def read_control(data: dict[str, Any]) -> ControlFile:
    """A control from a recipe's JSON. Raises ValueError, naming the field, for an invalid one."""
    files = {
        name: read_source(f"control's {name}", data[name])
        for name in ("network", "hint")
        if isinstance(data.get(name), dict)
    }
    control: ControlFile = read_built(ControlFile, {**data, **files}, "a control")
    return control
