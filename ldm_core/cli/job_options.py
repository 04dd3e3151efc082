"""The options of `draw` and `verify`, besides those for the model and the sampling."""

from __future__ import annotations

import argparse
import re
from typing import Any

from ldm_core.cli.defaults import MAX_PICTURES, PROMPT_SYNTAXES
from ldm_core.cli.option_types import number, whole
from ldm_core.support.printable import shown

FORMATS = ("webdataset", "parquet", "folder")
SHARD_SIZE = 256
MAX_ACTORS = 100_000


def add_draw_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rows", metavar="ROWS", help=".txt, .csv, .tsv, .jsonl, .parquet, or a folder of `datasets`"
    )
    what = parser.add_argument_group("what to draw")
    _add_rows(what)
    what.add_argument(
        "--seed",
        type=whole(0, 10**9 - 1),
        default=0,
        metavar="N",
        help="of the job; rows without a seed get theirs from it and their id (default 0)",
    )
    what.add_argument("--prompt-syntax", choices=PROMPT_SYNTAXES, help="(default: prompts are plain text)")
    what.add_argument(
        "--strength", type=number, metavar="X", help="how much to change pictures, in (0, 1] (default 0.75)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="a new folder, or that of this job"
    )
    output.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}")
    output.add_argument(
        "--shard-size",
        type=whole(1, MAX_PICTURES),
        default=SHARD_SIZE,
        metavar="N",
        help=f"rows of a shard, which is the unit of resuming (default {SHARD_SIZE})",
    )
    output.add_argument("--retry-failed", action="store_true", help="draw shards with failed rows again")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no messages")
    _add_where_to_run(parser.add_argument_group("where to run (torchrun needs no option)"))


def _add_where_to_run(group: Any) -> None:
    group.add_argument(
        "--part", type=part, metavar="K/N", help="finish the shards K, K + N, K + 2 N, …, with K in 0..N-1"
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on Ray: auto, HOST:PORT or ray://HOST:PORT (default: RAY_ADDRESS, else this machine)",
    )
    group.add_argument(
        "--actors", type=whole(1, MAX_ACTORS), default=1, metavar="N", help="processes on Ray (default 1)"
    )
    group.add_argument(
        "--gpus", type=number, metavar="X", help="of each actor (default: 1 if there is one, else 0)"
    )
    group.add_argument("--cpus", type=number, default=1.0, metavar="X", help="of each actor (default 1)")


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="FOLDER", help="the output folder of a job")
    group = parser.add_argument_group("drawing again")
    group.add_argument(
        "--redraw",
        type=whole(0, MAX_PICTURES),
        default=0,
        metavar="K",
        help="draw K random pictures again and compare them (default 0)",
    )
    group.add_argument("--rows", metavar="ROWS", help="the rows of the job, if they have pictures")
    _add_rows(group)
    group.add_argument(
        "--tolerance",
        type=whole(0, 255),
        metavar="N",
        help="largest difference of a pixel, in levels of 255 (default 2 in float32, else 32)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no messages")


def _add_rows(group: Any) -> None:
    group.add_argument(
        "--column",
        dest="columns",
        action="append",
        default=[],
        type=column,
        metavar="NAME=COLUMN",
        help="the column of the file that has, for example, the prompt: --column prompt=caption",
    )
    group.add_argument("--images", metavar="FOLDER", help="the folder of the pictures that rows name")


def column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise argparse.ArgumentTypeError(f"expected NAME=COLUMN, such as prompt=caption, not {shown(text)}")
    return name, column


def part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"expected K/N with K in 0..N-1, such as 0/8, not {shown(text)}")
    return int(match[1]), int(match[2])
