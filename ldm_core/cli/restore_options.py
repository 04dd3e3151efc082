"""The options of the `restore` command."""

from __future__ import annotations

import argparse

from ldm_core.cli.option_types import number, whole


def add_restore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="FILE|FOLDER", help="a photo, or a folder of photos")
    parser.add_argument(
        "--model", required=True, metavar="FILE", help="a CodeFormer, GFPGAN or GPEN, such as codeformer.pth"
    )
    parser.add_argument(
        "--fidelity",
        type=number,
        default=0.5,
        metavar="X",
        help="CodeFormer: 0 is the most restored, 1 the nearest to the photo (default 0.5)",
    )
    parser.add_argument(
        "--upscale", type=whole(1, 8), default=1, metavar="N", help="enlarge the photo N times (default 1)"
    )
    parser.add_argument("--aligned", action="store_true", help="each photo is one aligned face")
    parser.add_argument("--parser", metavar="FILE", help="a ParseNet, with which faces are cut out")
    parser.add_argument(
        "--mask",
        choices=("square", "parsing", "both"),
        help="how faces are pasted (default: square; parsing with --parser)",
    )
    parser.add_argument(
        "--seed", type=whole(0, 999_999_999), default=0, metavar="N", help="of networks that draw noise"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: cuda if available)")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE.png|FOLDER", help="where the restored photos go"
    )
    parser.add_argument("--sheet", action="store_true", help="also save the photo beside the result")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no warnings")
