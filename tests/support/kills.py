"""Functions that run in a process which is killed, as by the system, in the middle of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(target: Callable[..., None], *arguments: Any) -> None:
    """Run `target` in a process that it kills."""
    pid = os.fork()
    if pid == 0:
        try:
            target(*arguments)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
