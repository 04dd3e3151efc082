"""The options of the workbench's commands: `imagine`, `vary`, `zoom-out`, `pan`, `blend` and `describe`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ldm_core.cli.defaults import BUNDLED_GUIDANCE, BUNDLED_STEPS, GUIDANCE, SCHEDULERS, STEPS
from ldm_core.cli.option_types import number, whole
from ldm_core.recipe.checks import MAX_STEPS
from ldm_core.recipe.noises import MAX_PICTURES
from ldm_core.support.limits import MAX_SIZE

Command = Callable[[str, str], argparse.ArgumentParser]
AddModel = Callable[[Any], None]
PICTURE = "a grid's file and before it the number of a picture, or a picture; default: the newest grid here"


def add_imagine_commands(command: Command, add_model: AddModel) -> None:
    """add_model: adds the options for the model, besides its path."""
    imagine = command("imagine", "Draw a grid of numbered pictures from a prompt with flags.")
    imagine.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help='words and flags in quotes: "a cat --ar 3:2 --no dog --seed 7 --chaos 20 --tile --iw 0.5"',
    )
    imagine.add_argument("--image", metavar="FILE", help="a picture as a part of the prompt")
    imagine.add_argument(
        "--from", dest="recipe", metavar="FILE.png", help="take what is not given from this picture"
    )
    _add_adapter(imagine)
    vary = command("vary", "Draw variations of a picture.")
    _add_picture(vary)
    amount = vary.add_mutually_exclusive_group()
    amount.add_argument("--weak", dest="how", action="store_const", const="weak", help="small changes")
    amount.add_argument("--strong", dest="how", action="store_const", const="strong", help="the default")
    vary.add_argument("--seed", type=whole(0, 999_999_999), metavar="N", help="of the first variation")
    zoom_out = command("zoom-out", "Draw the surroundings of a picture, which becomes smaller.")
    _add_picture(zoom_out)
    zoom_out.add_argument("--factor", type=number, default=2.0, metavar="X", help="default 2")
    pan = command("pan", "Extend a picture to one side.")
    pan.add_argument("direction", choices=("left", "right", "up", "down"))
    _add_picture(pan)
    pan.add_argument("--amount", type=number, default=0.5, metavar="X", help="of the side (default 0.5)")
    for outpainting in (zoom_out, pan):
        outpainting.add_argument("--prompt", metavar="TEXT", help="for what is new (default: the picture's)")
    blend = command("blend", "Draw pictures from two or more.")
    blend.add_argument("pictures", nargs="+", metavar="FILE", help="two pictures or more")
    blend.add_argument("--prompt", default="", metavar="TEXT", help="with flags (default: the pictures' own)")
    blend.add_argument(
        "--weights", type=number, nargs="+", metavar="X", help="of the pictures (default: equal)"
    )
    blend.add_argument("--strength", type=number, default=0.7, metavar="X", help="of the noise (default 0.7)")
    _add_adapter(blend)
    for drawing in (imagine, vary, zoom_out, pan, blend):
        _add_drawing(drawing, add_model)
    describe = command("describe", "Rank words by how well they describe a picture.")
    describe.add_argument("picture", metavar="FILE", help="the picture")
    describe.add_argument("--clip", metavar="FILE", help="a CLIP with its image encoder: a file or folder")
    describe.add_argument("--words", metavar="FILE", help="a UTF-8 file of words, one per line")
    describe.add_argument("--top", type=whole(1, 10_000), default=5, metavar="N", help="default 5")


def add_second_pass(upscale: argparse.ArgumentParser) -> None:
    """The form `upscale [NUMBER] FILE.png` of a command whose first argument is otherwise a model."""
    group = upscale.add_argument_group("a picture of a grid, by a second pass: upscale [NUMBER] FILE.png")
    upscale.add_argument("picture", nargs="?", metavar="FILE.png", help="the grid, after a picture's number")
    group.add_argument("--scale", type=number, metavar="X", help="default 2")
    group.add_argument("--strength", type=number, metavar="X", help="how much to redraw (default 0.3)")
    group.add_argument(
        "--windows",
        type=whole(1, MAX_SIZE),
        metavar="N",
        help="work in windows of N latent pixels, for pictures that need more memory than there is",
    )
    group.add_argument("--upscaler", metavar="FILE", help="use this super-resolution model instead")


def _add_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", nargs="*", metavar="[NUMBER] FILE.png", help=PICTURE)


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ip-adapter", metavar="FILE", help="an IP-Adapter, which takes the pictures")
    parser.add_argument("--clip", metavar="FILE|FOLDER", help="the CLIP that the IP-Adapter was made for")


def _add_drawing(parser: argparse.ArgumentParser, add_model: AddModel) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="PATH", help="default: the picture's, or the bundled model")
    add_model(group)
    parser.set_defaults(eta=None, spacing=None, recipe=None)
    group = parser.add_argument_group("how to draw")
    group.add_argument(
        "--steps",
        type=whole(1, MAX_STEPS),
        metavar="N",
        help=f"default: the picture's, or {BUNDLED_STEPS} for the bundled model, else {STEPS}",
    )
    group.add_argument(
        "--guidance",
        dest="guidance_scale",
        type=number,
        metavar="X",
        help=f"default: the picture's, or {BUNDLED_GUIDANCE:g} for the bundled model, else {GUIDANCE:g}",
    )
    group.add_argument("--scheduler", choices=SCHEDULERS, help="default: the picture's, or ddim")
    group.add_argument("--count", type=whole(1, MAX_PICTURES), default=4, metavar="N", help="default 4")
    group.add_argument(
        "--trust-paths", action="store_true", help="read the files that the picture's recipe names"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        default=".",
        metavar="FILE.png|FOLDER",
        help="a file, or a folder for numbered grids; NEW/ makes one (default: the current folder)",
    )
    group.add_argument("--separate", action="store_true", help="also save each picture in a file of its own")
    group.add_argument("--force", action="store_true", help="overwrite FILE.png")
    group.add_argument("--no-paths", action="store_true", help="omit file paths from the recipe in a picture")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no warnings")
