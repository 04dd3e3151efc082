"""What a stage has measured: rows of plain values in a JSON file, which is written again after every row.

A process that is killed at any moment loses the row that it was measuring and nothing else: the next process
finds the other rows in the file and does not measure them again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_timing import clocks

Row = dict[str, Any]
CLOCKS_EVERY = 10  # seconds
LOST = 3  # the exit code of a process whose CUDA context no longer works


class NotHere(Exception):
    """What a row would measure does not exist on this machine or in this version of the package."""


class StageReport:
    """The rows of one stage.

    state    "running", "done", "out of time" or "failed"
    running  the name of the row that is being measured
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.running, self.seconds = "running", "", 0.0
        self.rows: list[Row] = []
        self._clocks_read = -math.inf
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            self.state, self.running = known["state"], known["running"]
            self.seconds, self.rows = known["seconds"], known["rows"]

    def find(self, name: str) -> Row | None:
        return next((row for row in self.rows if row["name"] == name), None)

    def row(self, name: str, measure: Callable[[], Row]) -> Row:
        """The values that `measure` returns, under this name; from the file, where they are in it.

        An exception becomes the row's "error", or "skipped" for `NotHere`, and the stage goes on.
        """
        known = self.find(name)
        if known is not None:
            return known
        self.running = name
        self.save()
        begin = time.perf_counter()
        try:
            values = measure()
        except NotHere as error:
            values = {"skipped": str(error)}
        except Exception as error:  # whatever fails, the other rows can still be measured
            values = {"error": _line(error)}
        end = time.perf_counter()
        if end > self._clocks_read + CLOCKS_EVERY:  # while the GPU is still as it was
            values, self._clocks_read = values | {"clocks": clocks()}, end
        self.add({"name": name, **values, "took": round(end - begin, 3)})
        if "error" in values and _context_is_lost():
            sys.exit(LOST)  # no later row could run; a new process goes on
        return self.rows[-1]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.running = ""
        self.save()
        print(f"  {shown(row)}", flush=True)

    def save(self) -> None:
        """Write the file so that it is there whole or as it was before, whenever the process is killed."""
        contents = {
            "stage": self.path.stem,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "running": self.running,
            "rows": self.rows,
        }
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(contents, indent=1), encoding="utf-8")
        os.replace(partial, self.path)


def shown(row: Row) -> str:
    """A row for the terminal."""
    values = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
    words = [f"{key} {row[key]}" for key in ("skipped", "error") if key in row]
    return ", ".join([str(row["name"]), *values, *words])


def _line(error: BaseException) -> str:
    """The type and the first line of a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _context_is_lost() -> bool:
    """Whether an earlier kernel failed in a way (an illegal address, say) that ends the CUDA context."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
