"""The functions that run the commands, and how their warnings are shown."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ldm_core.cli.convert import convert_file, merge_files
from ldm_core.cli.draw import draw
from ldm_core.cli.going_on import blend_pictures, describe_picture, go_on, upscale
from ldm_core.cli.imagine import imagine
from ldm_core.cli.inspection import inspect_file
from ldm_core.cli.jobs import draw_rows, verify_job
from ldm_core.cli.printing import tell
from ldm_core.cli.restoration import restore_files
from ldm_core.cli.serve import serve

COMMANDS = {
    "txt2img": draw,
    "img2img": draw,
    "inpaint": draw,
    "sample": draw,
    "upscale": upscale,
    "imagine": imagine,
    "vary": go_on,
    "zoom-out": go_on,
    "pan": go_on,
    "blend": blend_pictures,
    "describe": describe_picture,
    "draw": draw_rows,
    "verify": verify_job,
    "inspect": inspect_file,
    "convert": convert_file,
    "merge": merge_files,
    "restore": restore_files,
    "serve": serve,
}


def run(args: Namespace) -> int:
    """Run the parsed command and return its exit status. Raises ValueError or OSError for bad input."""
    with _one_line_warnings(getattr(args, "quiet", False)):
        return COMMANDS[args.command](args)


@contextmanager
def _one_line_warnings(quiet: bool) -> Iterator[None]:
    """Show each warning once, on one line, without its position in the code."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if not quiet and str(message) not in seen:
            seen.add(str(message))
            tell(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
