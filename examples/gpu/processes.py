"""A stage in a process of its own, which can be ended at any time and takes a failed CUDA context with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, so that nothing is left on the GPU."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_within(seconds: float, start: str, function: Callable[..., None], *arguments: Any) -> int | None:
    """Call a function in a process. Returns its exit code, or None if it was ended for its time.

    start: "spawn" begins anew, as CUDA needs; "fork" begins with all that is imported here, for a dry run.
    """
    process = multiprocessing.get_context(start).Process(target=_run, args=(function, *arguments))
    process.start()
    assert process.pid is not None
    try:
        process.join(max(0.1, seconds))
        return process.exitcode
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # if it had no group yet
        process.join()


def _run(function: Callable[..., None], *arguments: Any) -> None:
    os.setpgrp()  # so that the processes that it starts end with it
    end_with_parent()
    function(*arguments)
