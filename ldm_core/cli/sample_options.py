"""The options of `sample` and `upscale` for what to draw."""

from __future__ import annotations

from typing import Any

from ldm_core.cli.option_types import number, whole
from ldm_core.support.limits import MAX_TIMESTEPS


def add_sample_inputs(group: Any) -> None:
    """Options for the inputs of all kinds of models. A model takes some of them."""
    group.add_argument(
        "--class", dest="classes", action="append", metavar="NAME|NUMBER", help="a class; can be repeated"
    )
    group.add_argument(
        "--layout",
        dest="layouts",
        action="append",
        metavar="FILE.json",
        help="a list of [label, x, y, width, height], fractions of the picture; can be repeated",
    )
    group.add_argument(
        "--until",
        type=number,
        metavar="X",
        help="the share of the steps in which boxes with words act (default: 0.3)",
    )
    group.add_argument(
        "--names", metavar="FILE", help="the names of the classes for --class and --layout, one per line"
    )
    group.add_argument("--map", metavar="FILE.png", help="a palette or grey picture whose values are classes")
    group.add_argument("--depth", metavar="FILE", help="a grey picture; larger values are nearer")
    group.add_argument(
        "--embeddings",
        dest="clip_embeddings",
        metavar="FILE.safetensors",
        help="CLIP embeddings in one tensor (B, k, width): B pictures from k embeddings each",
    )
    _add_picture(group)


def add_upscale_inputs(group: Any) -> None:
    _add_picture(group)


def _add_picture(group: Any) -> None:
    """Options for a picture and a text."""
    group.add_argument("--image", metavar="FILE", help="the picture to enlarge, or to draw from")
    group.add_argument(
        "--prompt", action="append", metavar="TEXT", help="for models that take it; can be repeated"
    )
    group.add_argument(
        "--negative-prompt",
        action="append",
        metavar="TEXT",
        help="what to avoid; give it once, or once per picture",
    )
    group.add_argument(
        "--noise-level",
        type=whole(0, MAX_TIMESTEPS),
        metavar="N",
        help="of noise on the picture or the embeddings (default: the model's)",
    )
