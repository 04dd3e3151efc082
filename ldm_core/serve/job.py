"""A job: an order in the queue, with a report of its state that any number of readers can wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ldm_core.recipe import Recipe
from ldm_core.recipe.png import png_bytes
from ldm_core.serve.order import Order

if TYPE_CHECKING:
    from PIL.Image import Image

State = Literal["waiting", "loading", "drawing", "done", "cancelled", "failed"]
FINAL = ("done", "cancelled", "failed")


class Cancelled(Exception):
    """Raised within a drawing whose job has been cancelled."""


@dataclass(frozen=True)
class Result:
    """What an order gives. strip: the steps of the last picture. words: (word, map over the picture)."""

    pictures: tuple[Image, ...]
    recipes: tuple[Recipe, ...]
    strip: Image | None = None
    words: tuple[tuple[str, Image], ...] = ()

    def png(self, k: int) -> bytes:
        """The k-th picture as a PNG file that carries its recipe."""
        return png_bytes(self.pictures[k], self.recipes[k])


@dataclass(frozen=True)
class Report:
    """The state of a job at one moment.

    position: jobs that are drawn before this one. step, total: steps done, and of all pictures together.
    preview: the predicted picture after the latest step. message: why it failed. refused: whether it failed
    because of the order, so that trying again is of no use. notes: warnings.
    """

    state: State = "waiting"
    position: int = 0
    step: int = 0
    total: int = 0
    preview: Image | None = None
    message: str = ""
    refused: bool = False
    notes: tuple[str, ...] = ()
    result: Result | None = None

    @property
    def final(self) -> bool:
        """Whether no other report of the job follows."""
        return self.state in FINAL


class Job:
    """An order and its state. `Engine.submit` makes it; on_cancel: called when it is cancelled."""

    def __init__(self, order: Order, on_cancel: Callable[[Job], None]) -> None:
        self.order = order
        self._on_cancel = on_cancel
        self._report = Report()
        self._version = 0  # of the report
        self._changed = threading.Condition()
        self._cancelled = threading.Event()

    @property
    def report(self) -> Report:
        """The latest report."""
        return self._report

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked to cancel it; a running one ends after its current step."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Take the job from the queue, or end it after its current step. A finished job stays as it is."""
        self._cancelled.set()
        self._on_cancel(self)

    def update(self, **changes: Any) -> None:
        """Replace fields of the report. The last report of a finished job stays."""
        with self._changed:
            if not self._report.final:
                self._report = replace(self._report, **changes)
                self._version += 1
                self._changed.notify_all()

    def reports(self, beat: float = 1.0) -> Iterator[Report]:
        """Yield the report at every change, at least once in `beat` seconds, up to the final one.

        A slow reader misses reports, but never the final one.
        """
        seen = -1
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._version != seen, beat)  # noqa: B023
                report, seen = self._report, self._version
            yield report
            if report.final:
                return

    def wait(self, timeout: float | None = None) -> Report:
        """The final report. Raises TimeoutError if there is none within `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            left = None if end is None else end - time.monotonic()
            if not self._changed.wait_for(lambda: self._report.final, left):
                raise TimeoutError(f"the job is still {self._report.state}")
            return self._report
