"""The `inspect` command, which describes checkpoints, folders, adapters and the recipes in pictures."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import replace
from typing import Any

from ldm_core.checkpoint import inspect
from ldm_core.cli.printing import print_lines
from ldm_core.recipe import Recipe, read_recipe, read_restoration, to_json, to_parameters_text
from ldm_core.recipe.png import SIGNATURE
from ldm_core.recipe.restoration import is_restoration, restoration_lines, restoration_to_json
from ldm_core.support.printable import printable
from ldm_core.support.regular_file import open_regular


def inspect_file(args: Namespace) -> int:
    """Describe a checkpoint, or a picture's recipe. The status is 0 even if the file has defects."""
    if _is_png(args.file):
        print_lines(_recipe(args.file, args.json))
    else:
        report = inspect(args.file, check_values=args.check_values, verify=args.verify)
        print_lines(json.dumps(_plain(report.to_dict()), default=str) if args.json else str(report))
    return 0


def _recipe(path: str, as_json: bool) -> str:
    """The recipe of a drawing, or of a restored photo, as JSON or as text."""
    if is_restoration(path):
        restored = read_restoration(path)
        return restoration_to_json(restored) if as_json else restoration_lines(restored)
    recipe = read_recipe(path)
    return to_json(recipe) if as_json else to_parameters_text(_on_one_line(recipe))


def _on_one_line(recipe: Recipe) -> Recipe:
    """The recipe with line breaks in its prompts escaped, which could imitate lines of the recipe."""
    return replace(recipe, prompt=printable(recipe.prompt), negative_prompt=printable(recipe.negative_prompt))


def _is_png(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False  # `inspect` raises a better error


def _plain(value: Any) -> Any:
    """The value with NaN and infinity as text, since JSON has no numbers for them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
