"""The options of the `restore` command; those that are not given come from a recipe, or else the defaults."""

from __future__ import annotations

import argparse

from ldm_core.cli.option_types import number, whole


def add_restore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", nargs="?", metavar="FILE|FOLDER", help="a photo, or a folder of photos")
    _add_again(parser)
    _add_networks(parser)
    _add_how(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE.png|FOLDER", help="where the restored photos go"
    )
    parser.add_argument("--sheet", action="store_true", help="also save the photo beside the result")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--no-paths", action="store_true", help="omit file paths from the recipe in a result")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no warnings")


def _add_again(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="recipe",
        metavar="FILE.png",
        help="restore as this result was, from its recipe; other options override the recipe",
    )
    parser.add_argument(
        "--trust-paths",
        action="store_true",
        help="read the files that the recipe names: the photo, the parser, the detector",
    )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="FILE", help="a CodeFormer, GFPGAN or GPEN, such as codeformer.pth"
    )
    parser.add_argument("--parser", metavar="FILE", help="a ParseNet, with which faces are cut out")
    parser.add_argument(
        "--detector", metavar="FILE", help="a RetinaFace that finds the faces (default: the bundled MTCNN)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: cuda if available)")


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fidelity",
        type=number,
        metavar="X",
        help="CodeFormer: 0 is the most restored, 1 the nearest to the photo (default 0.5)",
    )
    parser.add_argument(
        "--upscale", type=whole(1, 8), metavar="N", help="enlarge the photo N times (default 1)"
    )
    parser.add_argument(
        "--background", choices=("lanczos", "bilinear"), help="how the photo is enlarged (default: lanczos)"
    )
    parser.add_argument(
        "--threshold", type=number, metavar="X", help="the lowest score of a face to restore (default 0.9)"
    )
    parser.add_argument(
        "--aligned", action=argparse.BooleanOptionalAction, help="each photo is one aligned face"
    )
    parser.add_argument(
        "--alignment", choices=("facexlib", "gpen"), help="of the faces (default: the network's own)"
    )
    parser.add_argument(
        "--mask",
        choices=("square", "parsing", "both"),
        help="how faces are pasted (default: square; parsing with --parser)",
    )
    parser.add_argument(
        "--keep-grey",
        action=argparse.BooleanOptionalAction,
        help="faces of grey photos become grey (default: as in the network's script, CodeFormer's alone)",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N|random",
        help="of networks that draw noise (default 0); random: a new one each time, which the recipe records",
    )


def _seed(text: str) -> int | str:
    return text if text == "random" else whole(0, 999_999_999)(text)
