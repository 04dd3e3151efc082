"""The command line: `python -m ldm_core` and `ldm-core`.

Standard output carries nothing but the paths of the files that were written, one a line; messages go
to standard error. Exit status: 0; 2 for bad input or a file that cannot be written, with one line that says
what is wrong; 1 for latents with NaN or infinity, for too little memory, and where nobody reads the paths any
more; 130 after Ctrl-C.
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
    """Run one command and return its exit status. `--help` and `--version` end in SystemExit, as usual."""
    for stream in (sys.stdout, sys.stderr):  # of a terminal that knows ASCII only
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
        # Whoever read the paths has gone; Python would complain again as it flushes the pipe at exit.
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
    """The line that is shown after Ctrl-C; a run that has drawn pictures shows its own."""
    if args is not None and "target" in args:
        return "interrupted; nothing half-written is left"
    if args is not None and "prompt" in args:
        return "interrupted before the first picture was drawn"
    return "interrupted"


def _is_memory(error: BaseException) -> bool:
    """PyTorch's CPU allocator has no class of its own for this."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate" in str(error)
