"""The commands that go on from pictures: `vary`, `upscale`, `zoom-out`, `pan`, `blend` and `describe`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ldm_core.cli.draw import draw
from ldm_core.cli.imagine import is_number, open_desk, picture_of
from ldm_core.cli.inputs import open_rgb, read_prompts
from ldm_core.cli.printing import EXIT_INTERRUPTED, print_lines, tell
from ldm_core.clip import CLIP
from ldm_core.loading.load import load
from ldm_core.recipe import read_recipe
from ldm_core.sampler import Sampler
from ldm_core.windows import Windows
from ldm_core.workbench import Grid, Picture, Workbench, describe


def go_on(args: Namespace) -> int:
    """Draw what the command says from one picture of a grid, and return the exit status."""
    args.recipe, picture = picture_of(args.picture, args.output)
    picture = _with_options(picture, args)
    try:
        with open_desk(args, picture.recipe) as desk:
            return desk.save(_drawn(desk.bench, picture, args))
    except KeyboardInterrupt:
        tell("interrupted before the pictures were drawn")
        return EXIT_INTERRUPTED


def _drawn(bench: Workbench, picture: Picture, args: Namespace) -> Grid:
    if args.command == "vary":
        return bench.vary(picture, args.how or "strong", args.seed)
    if args.command == "zoom-out":
        return bench.zoom_out(picture, args.factor, args.prompt)
    if args.command == "pan":
        return bench.pan(picture, args.direction, args.amount, args.prompt)
    windows = None if args.windows is None else Windows(args.windows)
    if args.upscaler is not None:
        model = bench.sampler.model
        bench.upscaler = Sampler(
            load(args.upscaler, device=model.device, dtype=model.dtype), bench.sampler.scheduler
        )
    options = {"scale": args.scale, "strength": args.strength}
    given: Any = {name: value for name, value in options.items() if value is not None}
    return Grid((bench.upscale(picture, windows=windows, **given),))


def _with_options(picture: Picture, args: Namespace) -> Picture:
    """The picture with the steps and the guidance of the command line in its recipe."""
    names = ("steps", "guidance_scale")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return replace(picture, recipe=replace(picture.recipe, **given))


def upscale(args: Namespace) -> int:
    """`upscale [NUMBER] FILE.png` for a picture of a grid; otherwise the first argument is a model."""
    words = [word for word in (args.model, args.picture) if word is not None]
    if not words or args.recipe is not None or not (is_number(words[0]) or words[0].lower().endswith(".png")):
        refused = [
            name for name in ("scale", "strength", "windows", "upscaler") if getattr(args, name) is not None
        ]
        if args.picture is not None or refused:
            what = args.picture if args.picture is not None else f"--{refused[0]}"
            raise ValueError(f"{what}: only for a picture of a grid: upscale [NUMBER] FILE.png")
        return draw(args)
    for name in ("image", "prompt", "negative_prompt", "noise_level", "num", "seed", "size"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option}: not for a picture of a grid, whose recipe has it; see upscale --help"
            )
    args.model, args.picture, args.count, args.separate = None, words, 1, False
    return go_on(args)


def blend_pictures(args: Namespace) -> int:
    """Draw a grid from several pictures and return the exit status."""
    args.recipe = None
    pictures = [_opened(path) for path in args.pictures]
    try:
        with open_desk(args, None) as desk:
            return desk.save(desk.bench.blend(pictures, args.prompt, args.weights, args.strength))
    except KeyboardInterrupt:
        tell("interrupted before the pictures were drawn")
        return EXIT_INTERRUPTED


def _opened(path: str) -> Any:
    """A picture with its recipe, or any image."""
    try:
        recipe = read_recipe(path)
    except ValueError:
        return open_rgb(path, "blend")
    if recipe.noises is not None and len(recipe.noises.mixtures) > 1:
        raise ValueError(f"{path}: a grid; save its pictures with --separate, and blend these")
    return Picture(open_rgb(path, "blend"), recipe)


def describe_picture(args: Namespace) -> int:
    """Print the words that describe a picture, each after its probability."""
    words: Sequence[str] | None = None if args.words is None else read_prompts(args.words)
    image = open_rgb(args.picture, "describe")
    clip = None if args.clip is None else CLIP.load(args.clip)
    ranked = describe(clip, image, words, args.top)
    print_lines("\n".join(f"{share:.3f}  {word}" for word, share in ranked))
    return 0
