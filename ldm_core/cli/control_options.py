"""The options for controls and image prompts of the commands that draw."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ldm_core.cli.option_types import number
from ldm_core.support.printable import shown


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """Options for ControlNets, T2I-Adapters and IP-Adapters."""
    group = parser.add_argument_group(
        "controls and image prompts",
        "An option with several values separated by commas has one for each --control, in order; with one "
        "value, all have it.",
    )
    _add_controls(group)
    _add_image_prompt(group)


def _add_controls(group: Any) -> None:
    group.add_argument(
        "--control",
        dest="controls",
        action="append",
        metavar="FILE",
        help="a ControlNet or T2I-Adapter; can be repeated, with a --hint for each",
    )
    group.add_argument(
        "--hint",
        dest="hints",
        action="append",
        metavar="PICTURE",
        help="the edges, depth … for a --control; cropped and scaled to the size of what is drawn",
    )
    group.add_argument(
        "--control-strength", type=_each(number), metavar="X", help="factor of what it adds (default 1)"
    )
    group.add_argument(
        "--control-window",
        type=_each(_window),
        metavar="START:END",
        help="share of the steps in which it acts (default 0:1)",
    )
    group.add_argument(
        "--control-guess",
        type=_each(_one_of({"no": None, "original": "original", "diffusers": "diffusers"})),
        metavar="no|original|diffusers",
        help="guess mode of a ControlNet, for prompts that say little (default no)",
    )
    group.add_argument(
        "--control-mid-only",
        type=_each(_one_of({"no": False, "yes": True})),
        metavar="no|yes",
        help="use a ControlNet's middle block only (default no)",
    )
    group.add_argument(
        "--control-pool",
        type=_each(_one_of({"no": False, "yes": True})),
        metavar="no|yes",
        help='average what a ControlNet adds over all pixels, as "shuffle" needs (default: as its file says)',
    )


def _add_image_prompt(group: Any) -> None:
    group.add_argument("--ip-adapter", metavar="FILE", help="an IP-Adapter; needs --clip and --image-prompt")
    group.add_argument(
        "--clip",
        metavar="FILE|FOLDER",
        help="the CLIP that the IP-Adapter, or a style adapter among the controls, was made for",
    )
    group.add_argument(
        "--image-prompt",
        dest="image_prompts",
        action="append",
        metavar="PICTURE",
        help="a picture as a part of the prompt; several, if repeated, are one image prompt",
    )
    group.add_argument(
        "--image-scale", type=number, metavar="X", help="weight of the image prompt (default 1)"
    )


def _each(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """The conversion of values separated by commas."""
    return lambda text: tuple(convert(part) for part in text.split(","))


def _window(text: str) -> tuple[float, float]:
    start, colon, end = text.partition(":")
    if colon:
        share = (number(start), number(end))
        if 0 <= share[0] <= share[1] <= 1:
            return share
    raise argparse.ArgumentTypeError(f"expected START:END in [0, 1], such as 0:0.8, not {shown(text)}")


def _one_of(values: dict[str, Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text not in values:
            raise argparse.ArgumentTypeError(f"expected {', '.join(values)}, not {shown(text)}")
        return values[text]

    return convert
