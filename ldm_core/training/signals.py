"""Signals that ask a run to end: noted when they come, and acted on when a step is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM is put into when it comes; a second one acts as it would have."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For processes that read data: Ctrl-C in a terminal, and a cluster's SIGTERM, reach them as well. They
    go on until the run, which needs them for the step at hand, ends them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def exit_by_signal(caught: list[int]) -> NoReturn:
    """End as the signal would have ended the program; as SIGTERM does, where another process was sent one."""
    if caught and caught[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + (caught[0] if caught else signal.SIGTERM))
