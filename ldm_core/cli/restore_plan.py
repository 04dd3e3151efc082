"""From the command line of `restore`, and a recipe that it follows, to a call of `restoration.restore`."""

from __future__ import annotations

import re
import secrets
from argparse import Namespace
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ldm_core
from ldm_core import restoration
from ldm_core.cli.model import usable_device
from ldm_core.cli.recipe_files import model_path, recorded_path, refuse_untrusted
from ldm_core.recipe import Restoration, SourceFile, read_restoration, source_file
from ldm_core.recipe.restoration import FILES, restoration_without_paths
from ldm_core.support.warn import warn

OPTIONS = (
    *("upscale", "threshold", "aligned", "mask", "background", "seed"),
    *("fidelity", "alignment", "keep_grey"),
)
RANDOM_SEEDS = 10**9


@dataclass(frozen=True)
class Plan:
    """photo    the file or folder to restore
    recipe   of its results, but for the photo's file
    restore  from a photo to the restored photo
    again    the recipe that is followed, and `path`, its picture
    """

    photo: Path
    recipe: Restoration
    restore: Any
    again: Restoration | None
    path: str | None
    no_paths: bool

    def recipe_of(self, photo: Path) -> Restoration:
        """The recipe of one photo's result. Warns if the result will differ from the recipe's."""
        recipe = replace(self.recipe, photo=source_file(photo))
        self._warn_of_differences(recipe)
        return restoration_without_paths(recipe) if self.no_paths else recipe

    def _warn_of_differences(self, now: Restoration) -> None:
        for name in FILES if not self.photo.is_dir() else FILES[1:]:
            then, new = getattr(self.again, name, None), getattr(now, name)
            if then is not None and new is not None and not new.same_as(then):
                warn(
                    f"{self.path} was restored with the {name} {then.name!r:.300} (sha256 "
                    f"{then.short_hash}…), not with {new.name!r} ({new.short_hash}…); the result will differ"
                )


def recipe_to_follow(args: Namespace) -> Restoration | None:
    """The recipe of `--from`. Raises ValueError or OSError for a bad one, and for missing arguments."""
    if args.recipe is None:
        if args.photo is None or args.model is None:
            raise ValueError("restore needs a photo or a folder and --model FILE, or --from FILE.png")
        return None
    again = read_restoration(args.recipe)
    _require_trust(args, again)
    return again


def photo_path(args: Namespace, again: Restoration | None) -> Path:
    """The photo or the folder to restore. Raises ValueError if the recipe's photo is missing."""
    given = again is None or args.photo is not None
    return Path(args.photo if given or again is None else recorded_path(args.recipe, again.photo, "FILE"))


def plan(args: Namespace, again: Restoration | None, photo: Path) -> Plan:
    """Check and load everything that all photos need. Raises ValueError or OSError for bad input."""
    paths: dict[str, Any] = {name: _other(args, again, name) for name in ("parser", "detector")}
    paths["model"] = args.model if again is None or args.model else model_path(args, again.model)
    given = {name: path for name, path in paths.items() if path is not None}
    options = _options(args, again, has_parser="parser" in given)
    device = usable_device(args.device)
    networks: dict[str, Any] = {name: restoration.load(path, device=device) for name, path in given.items()}
    restorer = networks.pop("model")
    files: dict[str, Any] = {name: source_file(path) for name, path in given.items()}
    recipe = Restoration(
        photo=SourceFile(photo.name, ""),  # that of each photo takes its place
        device=str(device),
        versions={"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
        **files,
        **options,
    )
    restore = partial(restoration.restore, restorer=restorer, **networks, **options)
    return Plan(photo, recipe, restore, again, args.recipe, args.no_paths)


def _options(args: Namespace, again: Restoration | None, *, has_parser: bool) -> dict[str, Any]:
    """Options of `restoration.restore`: from the command line, else from the recipe, else the defaults."""
    options: dict[str, Any] = {}
    for own in fields(Restoration):
        if own.name in OPTIONS:
            given = getattr(args, own.name)
            options[own.name] = getattr(again, own.name, own.default) if given is None else given
    if args.seed == "random":
        options["seed"] = secrets.randbelow(RANDOM_SEEDS)
    if args.mask is None and (again is None or args.parser is not None):
        options["mask"] = "parsing" if has_parser else "square"
    return options


def _other(args: Namespace, again: Restoration | None, name: str) -> str | None:
    """The path of the parser or the detector, if there is one."""
    given: str | None = getattr(args, name)
    recorded = getattr(again, name, None)
    return given if given or recorded is None else recorded_path(args.recipe, recorded, f"--{name}")


def _require_trust(args: Namespace, again: Restoration) -> None:
    """Raise ValueError, listing the recorded files that need trust, unless `--trust-paths` is given."""
    named = []
    for name in FILES:
        file: SourceFile | None = getattr(again, name)
        if file is None or getattr(args, name) is not None:
            continue
        # As for drawings, a model on this machine needs no trust: reading it executes nothing.
        if name != "model" or re.match(r"[\\/]{2}", file.path or ""):
            named.append(("FILE" if name == "photo" else f"--{name}", file.path or file.name))
    refuse_untrusted(args, [f"{option} {value!r:.300}" for option, value in named])
