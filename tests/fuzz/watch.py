"""What no execution of a target may do, whatever its input: reach outside, take long, or take much memory."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_INPUT = 2**16  # bytes; the limits below are for inputs up to this
MAX_SECONDS = 2.0  # of the processor, for one execution
MAX_MEMORY = 2**28  # bytes by which one execution may raise the process's peak

# What reading does to the interpreter: look at, open and map its one file, and compare objects by identity.
ALLOWED = frozenset({"mmap.__new__", "builtins.id", "object.__getattr__", "sys._getframe"})
FOLDER = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(os.environ.get("TMPDIR", "/tmp"))


class BrokenPromise(BaseException):
    """An execution did what its target's oracle forbids.

    No Exception, so that nothing that is tested can catch it.
    """


_watching = 0  # the thread that is watched, or 0
_input: str | None = None
_seen: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if (
        not _watching
        or _watching != threading.get_ident()
        or event in ALLOWED
        or (event == "open" and str(args[0]) == _input)
    ):
        return
    _seen.append(f"{event} {args!r:.200}")
    raise BrokenPromise(_seen[-1])


sys.addaudithook(_audit)


@contextmanager
def watched(path: Path | None = None) -> Iterator[None]:
    """Raise BrokenPromise for what no execution may do; the only file that may be opened is `path`."""
    global _watching, _input
    _seen.clear()
    _input = None if path is None else str(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, _watching = time.process_time(), threading.get_ident()
    try:
        yield
    finally:
        _watching = 0
    if _seen:
        raise BrokenPromise(f"reached outside, and what was raised then was caught: {_seen[0]}")
    seconds = time.process_time() - start
    if seconds > MAX_SECONDS:
        raise BrokenPromise(f"took {seconds:.1f} s")
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    if grown > MAX_MEMORY:
        raise BrokenPromise(f"took {grown / 2**20:,.0f} MiB")


@contextmanager
def placed(data: bytes, name: str) -> Iterator[Path]:
    """The bytes as a file in memory, new each time: an older one may still be mapped."""
    path = FOLDER / f"ldm_core-fuzz-{os.getpid()}-{name}"
    with suppress(FileNotFoundError):
        path.unlink()
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink()


def promise(kept: bool, what: str) -> None:
    """Raise BrokenPromise unless it was kept."""
    if not kept:
        raise BrokenPromise(what)
