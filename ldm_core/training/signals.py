"""SIGINT and SIGTERM during a run: recorded when they arrive, handled after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yields a list that records the first SIGINT or SIGTERM; a second signal is handled as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def record(number: int, frame: Any) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, record)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a data loading process: the run needs it until the current step ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def exit_by_signal(caught: list[int]) -> NoReturn:
    """Exit as the caught signal would; as SIGTERM would if another process caught it."""
    if caught and caught[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + (caught[0] if caught else signal.SIGTERM))
