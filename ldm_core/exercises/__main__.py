"""The command line of the exercises: `python -m ldm_core.exercises`.

Exit status: 0 if everything that was checked is right, 1 if something is wrong, 2 for bad input such as a
file that cannot be read, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Sequence

from ldm_core.cli.printing import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    one_line,
    print_lines,
    tell,
)
from ldm_core.exercises.catalogue import EXERCISES, exercise
from ldm_core.exercises.marking import mark
from ldm_core.exercises.user_file import UserFile, Wrong

WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `--help` raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):  # the terminal may support ASCII only
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.command == "stub":
            print_lines(exercise(args.number).stub.rstrip("\n"))
            return 0
        if args.command == "check":
            if args.all == bool(args.numbers):
                raise ValueError("name the exercises to check, such as `check 3 my.py`, or give --all")
            numbers = [row.number for row in EXERCISES] if args.all else args.numbers
            return _check([exercise(number).number for number in numbers], args.file)
        return _list()
    except KeyboardInterrupt:
        tell("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (ValueError, OSError) as error:
        tell(f"error: {one_line(error)}")
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm_core.exercises",
        description="Twelve exercises: parts of latent diffusion to write, which the library marks. Without "
        "a command, lists them.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{list,stub,check}")
    commands.add_parser("list", help="list the exercises")
    stub = commands.add_parser("stub", help="print what to begin with")
    stub.add_argument("number", type=int, help="of the exercise")
    check = commands.add_parser(
        "check",
        help="run your file and mark it",
        description="Run your file and mark it. The file is executed, as by `python FILE`: give only code "
        "that you trust. Exit status 0: right, 1: wrong, 2: bad input.",
    )
    check.add_argument("--all", action="store_true", help="all twelve exercises, in one file")
    check.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help="of the exercises")
    check.add_argument("file", metavar="FILE", help="your Python file, which is executed")
    return parser


def _list() -> int:
    lines = ["", "     minutes  defines          exercise"]
    for row in EXERCISES:
        lines.append(f"{row.number:4} {row.minutes:7}  {row.defines:15}  {row.title} ({row.source})")
    lines += [
        "",
        "Begin:  python -m ldm_core.exercises stub 1 > my.py",
        "Check:  python -m ldm_core.exercises check 1 my.py      (executes my.py)",
        "",
    ]
    print_lines("\n".join(lines))
    return 0


def _check(numbers: Sequence[int], path: str) -> int:
    try:
        answer = UserFile(path)
    except Wrong as wrong:
        print_lines(f"\n{path} cannot be marked:\n{_indented(str(wrong))}\n")
        return EXIT_FAILED
    right = 0
    for number in numbers:
        result = mark(exercise(number), answer)
        right += result.right
        lines = ["", f"Exercise {number}: {result.exercise.title}"]
        lines += [f"  right  {name}" for name in result.passed]
        if result.failed is None:
            lines.append(f"  Done. The library's own solution is in {result.exercise.solution}.")
        else:
            lines += [f"  WRONG  {result.failed}", _indented(result.wrong or "")]
            lines.append(f"  The check stops at the first that fails. Its page is {result.exercise.page}.")
        print_lines("\n".join(lines))
    print_lines(f"\n{right} of {len(numbers)} right: {path}" if len(numbers) > 1 else "")
    return 0 if right == len(numbers) else EXIT_FAILED


def _indented(text: str, indent: str = " " * 9) -> str:
    lines = []
    for line in text.splitlines():
        inner = indent + " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(line.strip(), WIDTH, initial_indent=inner, subsequent_indent=inner) or [""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
