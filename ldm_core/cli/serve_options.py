"""The options of `serve`."""

from __future__ import annotations

import argparse

from ldm_core.cli.defaults import DTYPES, SCHEDULER, SCHEDULERS
from ldm_core.cli.option_types import whole

HOST, PORT = "127.0.0.1", 7860
MAX_PIXELS = 2**20


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="checkpoints or diffusers folders that users can choose from (default: the bundled model)",
    )
    parser.add_argument(
        "--host", default=HOST, metavar="ADDRESS", help=f"default: {HOST}, this machine alone"
    )
    parser.add_argument(
        "--port", type=whole(0, 65535), default=PORT, metavar="N", help=f"default: {PORT}; 0: a free one"
    )
    parser.add_argument("--scheduler", choices=SCHEDULERS, default=SCHEDULER, help=f"default: {SCHEDULER}")
    parser.add_argument(
        "--max-pixels",
        type=whole(1, 2**26),
        default=MAX_PIXELS,
        metavar="N",
        help=f"of a picture, width times height (default {MAX_PIXELS})",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: cuda if available)")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), help="default: float32 on a CPU, else the file's type"
    )
