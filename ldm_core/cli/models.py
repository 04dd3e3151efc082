"""The commands that look at checkpoints and rewrite them, and draw nothing."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm_core.checkpoint import inspect
from ldm_core.cli.files import already_there
from ldm_core.cli.output import print_lines, print_path
from ldm_core.loading.convert import add_difference, convert, weighted_sum
from ldm_core.recipe import Recipe, read_recipe, to_json, to_parameters_text
from ldm_core.recipe.png import SIGNATURE
from ldm_core.support.printable import printable
from ldm_core.support.regular_file import open_regular


def inspect_file(args: Namespace) -> int:
    """Tell what is in a checkpoint, or a picture's recipe. The status is 0 also for a file that is odd."""
    if _is_png(args.file):
        recipe = read_recipe(args.file)
        print_lines(to_json(recipe) if args.json else to_parameters_text(_on_one_line(recipe)))
    else:
        report = inspect(args.file, check_values=args.check_values, verify=args.verify)
        print_lines(json.dumps(_plain(report.to_dict()), default=str) if args.json else str(report))
    return 0


def _on_one_line(recipe: Recipe) -> Recipe:
    """The recipe for people: a line break in a prompt must not look like the recipe's next line."""
    return replace(recipe, prompt=printable(recipe.prompt), negative_prompt=printable(recipe.negative_prompt))


def convert_file(args: Namespace) -> int:
    """Write a checkpoint in another form, and print its path."""
    with _new_unless_forced(args.target, args.force):
        convert(
            args.source,
            args.target,
            layout=args.layout,
            dtype=_dtype(args),
            config=args.config,
            prediction=args.prediction,
            ema=args.ema,
            variant=args.variant,
            text_encoder=args.text_encoder,
            unet=args.unet,
            autoencoder=args.autoencoder,
            overwrite=args.force,
        )
    print_path(args.target)
    return 0


def merge_files(args: Namespace) -> int:
    """Write a weighted sum of two models, or the first and the difference of the others; print its path."""
    options: dict[str, Any] = {
        "layout": args.layout,
        "dtype": _dtype(args),
        "config": args.config,
        "prediction": args.prediction,
        "overwrite": args.force,
    }
    with _new_unless_forced(args.target, args.force):
        if len(args.models) == 2:
            a, b = args.models
            weighted_sum(a, b, args.target, 0.5 if args.alpha is None else args.alpha, **options)
        elif len(args.models) == 3:
            a, b, c = args.models
            add_difference(a, b, c, args.target, 1.0 if args.alpha is None else args.alpha, **options)
        else:
            count = len(args.models)
            raise ValueError(f"merge takes two models, or three for A + alpha (B - C), not {count}")
    print_path(args.target)
    return 0


def _dtype(args: Namespace) -> torch.dtype | None:
    return None if args.dtype is None else getattr(torch, args.dtype)


@contextmanager
def _new_unless_forced(target: str, force: bool) -> Iterator[None]:
    """Raise ValueError for a file that is there, at once, and for one that has appeared by the end."""
    taken = already_there(target)
    if Path(target).is_file() and not force:
        raise taken
    try:
        yield
    except FileExistsError:
        raise taken from None


def _is_png(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False  # `inspect` says in words what is wrong with it


def _plain(value: Any) -> Any:
    """The value without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
