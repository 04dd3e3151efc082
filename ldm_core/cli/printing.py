"""Everything that the command line prints.

Names of files, prompts, metadata and errors that quote them may come from a stranger. Control characters in
them are escaped (`ldm_core.support.printable`), so that no file can drive the terminal or begin a line of its
own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm  # writes leave its progress bars whole

from ldm_core.support.printable import printable

PROG = "ldm-core"

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def tell(message: str) -> None:
    """One line to people, on standard error."""
    _write(f"{PROG}: {printable(message)}", to_people=True)


def print_lines(text: str) -> None:
    """A result of several lines on standard output; the line breaks in it must be the caller's own."""
    _write(printable(text, keep="\n"))


def print_path(path: str | Path) -> None:
    """The path of a file that was written, on standard output.

    As it is where a program reads it, which must find the file; escaped on a terminal, as `ls` does.
    """
    if sys.stdout.isatty():
        _write(printable(str(path)))
    elif os.name == "posix" and hasattr(sys.stdout, "buffer"):
        tqdm.get_lock()  # as below
        with tqdm.external_write_mode(file=sys.stdout):
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")  # names are bytes, and may be no text
    else:
        _write(str(path))
    sys.stdout.flush()


def _write(line: str, *, to_people: bool = False) -> None:
    tqdm.get_lock()  # tqdm makes it at its first write, and Ctrl-C while it does ends in an AttributeError
    tqdm.write(line, file=sys.stderr if to_people else sys.stdout)


def one_line(error: BaseException) -> str:
    """What an error says, on one line; an operating system's error as "path: reason"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines).replace(":;", ":")
    return text or type(error).__name__
