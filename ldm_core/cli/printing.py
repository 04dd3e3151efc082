"""Everything that the command line prints.

File names, prompts, metadata and the errors that quote them may come from an untrusted file. Their control
characters are escaped (`ldm_core.support.printable`), so that no file can send commands to the terminal or
forge a line of output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm  # tqdm.write does not break progress bars

from ldm_core.support.printable import printable

PROG = "ldm-core"

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def tell(message: str) -> None:
    """Print one line of a message to standard error."""
    _write(f"{PROG}: {printable(message)}", to_people=True)


def print_lines(text: str) -> None:
    """Print a result of several lines to standard output. Only the caller may add line breaks to it."""
    _write(printable(text, keep="\n"))


def print_path(path: str | Path) -> None:
    """Print the path of a written file to standard output.

    The path is escaped on a terminal, as `ls` does, and unchanged elsewhere, so that programs find the file.
    """
    if sys.stdout.isatty():
        _write(printable(str(path)))
    elif os.name == "posix" and hasattr(sys.stdout, "buffer"):
        tqdm.get_lock()  # as below
        with tqdm.external_write_mode(file=sys.stdout):
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")  # a name may not be valid text
    else:
        _write(str(path))
    sys.stdout.flush()


def _write(line: str, *, to_people: bool = False) -> None:
    tqdm.get_lock()  # tqdm creates its lock at the first write; Ctrl-C during that raises AttributeError
    tqdm.write(line, file=sys.stderr if to_people else sys.stdout)


def one_line(error: BaseException) -> str:
    """An error's message on one line. Errors of the operating system become "path: reason"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines).replace(":;", ":")
    return text or type(error).__name__
