"""The command line: `python -m ldm_core` and `ldm-core`.

Standard output contains only the paths of written files, one per line. Messages go to standard error.

Exit status:

    0    success
    1    NaN or infinity in latents, too little memory, or standard output was closed by its reader
    2    bad input, or a file that cannot be written; one line describes the error
    130  interrupted with Ctrl-C
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ldm_core.cli.parser import build_parser
from ldm_core.cli.printing import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, one_line, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `--help` and `--version` raise SystemExit."""
    for stream in (sys.stdout, sys.stderr):  # the terminal may support ASCII only
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args: argparse.Namespace | None = None
    try:
        args = build_parser().parse_args(argv)
        from ldm_core.cli import commands  # imports torch, which --help does not need

        return commands.run(args)
    except KeyboardInterrupt:
        tell(_interrupted(args))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe has gone. Python would report this again when it flushes the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (ValueError, OSError) as error:
        tell(f"error: {one_line(error)}")
        return EXIT_BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        tell("error: out of memory; try a smaller --size or --batch-size, or --dtype bfloat16")
        return EXIT_FAILED


def _interrupted(args: argparse.Namespace | None) -> str:
    """The message after Ctrl-C. `draw` has its own message for a run that has started to draw."""
    if args is not None and "target" in args:
        return "interrupted; no incomplete file is left"
    if args is not None and "prompt" in args:
        return "interrupted before the first picture was drawn"
    return "interrupted"


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out. PyTorch's CPU allocator raises a RuntimeError for this."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate" in str(error)
