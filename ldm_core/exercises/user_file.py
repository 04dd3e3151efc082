"""The user's file: it is executed, its functions are called, and its errors are told with their line.

The file is a program of the user's own, and marking it means to run it, as `python my.py` would. Nothing else
is executed, and nothing protects the machine from it.
"""

from __future__ import annotations

import _thread
import difflib
import inspect
import sys
import threading
import tokenize
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm_core.support.printable import few, shown_error
from ldm_core.testing import ContractError
from ldm_core.testing.contract import same_value, snapshot

SECONDS = 60.0  # that one call may take: a loop of byte-pair encoding that never ends is a common mistake
MODULE = "ldm_core_exercise"


class Wrong(Exception):
    """What is wrong with an answer, in words."""


class UserFile:
    """A user's file that has been executed.

    path: of the file. seconds: the limit of each call. Raises OSError if the file cannot be read, and Wrong
    if it is not Python or raises an error.
    """

    def __init__(self, path: str | Path, seconds: float = SECONDS) -> None:
        self.path, self.seconds = Path(path), seconds
        self.module = ModuleType(MODULE)  # not __main__, so that code under that condition does not run
        self.module.__file__ = str(path)
        before = sys.modules.get(MODULE)
        sys.modules[MODULE] = self.module  # where dataclasses look for it
        try:
            with self.guarded(f"running {self.path.name}"):
                with tokenize.open(self.path) as file:
                    source = file.read()
                exec(compile(source, str(self.path), "exec", dont_inherit=True), vars(self.module))
        finally:
            del sys.modules[MODULE]
            if before is not None:
                sys.modules[MODULE] = before

    def get(self, name: str) -> Any:
        """The function or class of this name. Raises Wrong if the file does not define it."""
        names = [key for key, value in vars(self.module).items() if key[0] != "_" and callable(value)]
        if name not in vars(self.module):
            near = difflib.get_close_matches(name, names, 1)
            defined = f"it defines {few(names)}" if names else "it defines no function and no class"
            meant = f". Is `{near[0]}` meant?" if near else f"; {defined}."
            raise Wrong(f"{self.path.name} does not define `{name}`{meant}")
        value = vars(self.module)[name]
        if not callable(value):
            raise Wrong(f"`{name}` must be a function or a class, not a {type(value).__name__}.")
        return value

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        name: str = "",
        hint: str = "",
        **options: Any,
    ) -> Any:
        """The result of the user's function. Raises Wrong if it raises, or changes one of its arguments.

        name: of the function in messages, by default its own. hint: what may be the cause if it raises.
        """
        name = name or _name(function)
        before = snapshot(arguments)
        with self.guarded(f"{name}(…)", hint):
            result = function(*arguments, **options)
        for k, (now, then) in enumerate(zip(arguments, before)):
            if not callable(now) and not same_value(now, then):
                raise Wrong(
                    f"{name}(…) changes its argument {_parameter(function, k)} in place. The caller uses it "
                    "again: compute a new value instead (`x = x + y`, not `x += y`; `mul`, not `mul_`)."
                )
        if result is None:
            raise Wrong(f"{name}(…) returns None. Does it lack a `return`?")
        return result

    def meets(self, check: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Run a check of `ldm_core.testing`. Raises Wrong with its report if the contract is broken."""
        try:
            with self.guarded(_name(check)):
                check(*arguments, **options)
        except ContractError as error:
            where = "" if error.__cause__ is None else self._where(error.__cause__)
            raise Wrong(str(error) + (f"\n{where}" if where else "")) from error

    @contextmanager
    def guarded(self, doing: str, hint: str = "") -> Iterator[None]:
        """Turn what the user's code raises into Wrong, and interrupt it after the limit of time."""
        late = threading.Event()

        def interrupt() -> None:
            late.set()
            _thread.interrupt_main()

        timer = threading.Timer(self.seconds, interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
            timer.cancel()
        except (Wrong, ContractError, OSError):
            raise
        except KeyboardInterrupt as error:
            if not late.is_set():
                raise
            words = f"{doing} had not finished after {self.seconds:g} s. Does a loop never end?"
            raise Wrong(self._at(words, error)) from error
        except NotImplementedError as error:
            raise Wrong(self._at(f"{doing} is not written yet.", error)) from error
        except (Exception, SystemExit) as error:
            words = f"{doing} raises {type(error).__name__}: {shown_error(error)}"
            raise Wrong(self._at(words, error) + (f"\n{hint}" if hint else "")) from error
        finally:
            timer.cancel()

    def _at(self, words: str, error: BaseException) -> str:
        where = self._where(error)
        return f"{words}\n{where}" if where else words

    def _where(self, error: BaseException) -> str:
        """The last line of the user's file that led to an error, or nothing if none did."""
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"line {error.lineno}: {(error.text or '').strip()}"
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if frame.filename == str(self.path)]
        return f"line {mine[-1].lineno}: {(mine[-1].line or '').strip()}" if mine else ""


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _parameter(function: Callable[..., Any], k: int) -> str:
    try:
        return f"`{list(inspect.signature(function).parameters)[k]}`"
    except (ValueError, TypeError, IndexError):
        return f"number {k + 1}"
