"""The files that a recipe names, and which of them `--from` reads.

A picture and its recipe may come from a stranger, who could name any file of this machine: a pipe that
blocks, or a private picture, which would show in the result. A model is read from where the recipe says that
it was, since reading a checkpoint executes nothing, unless that is on another machine, to which Windows would
tell who the user is. That and every other file is read only if `--trust-paths` or its own option is given.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ldm_core.config import PRESETS
from ldm_core.recipe import Recipe, SourceFile, source_file
from ldm_core.recipe.fields import HASH_DIGITS
from ldm_core.support.printable import few

FILES_SHOWN = 20


def require_trust(args: Namespace, again: Recipe, pictures: Sequence[str]) -> None:
    """Raises ValueError, with all files that would be read besides a local model, unless they are trusted.

    pictures: which of "image" and "mask" the command needs.
    """
    named = [] if args.trust_paths else _files_to_trust(args, again, pictures)
    if named:
        raise ValueError(
            f"{args.recipe} names files, which are read only with --trust-paths or if you give them: "
            f"{few(named, FILES_SHOWN)}"
        )


def _files_to_trust(args: Namespace, again: Recipe, pictures: Sequence[str]) -> list[str]:
    """Each file as the option that would give it again."""
    named = []
    if args.model is None and re.match(r"[\\/]{2}", again.model.path or ""):
        named.append(("--model", again.model.path))
    for name in (*pictures, "autoencoder"):
        file: SourceFile | None = getattr(again, name)
        if file is not None and getattr(args, name) is None:
            named.append((f"--{name}", file.path or file.name))
    for kind in ("loras", "embeddings"):
        for adapter in getattr(again, kind) if getattr(args, kind) is None else ():
            place = adapter.file.path or adapter.file.name
            named.append((f"--{kind.removesuffix('s')}", f"{place}={adapter.name or adapter.scale}"))
    if again.config is not None and again.config not in PRESETS and args.config is None:
        named.append(("--config", again.config))
    return [f"{option} {value!r:.300}" for option, value in named]


def recorded_path(recipe: str, file: SourceFile, option: str) -> str:
    """Where a recipe says that a file is. Raises ValueError, naming the option, if it is not there."""
    if file.path is not None and os.path.isfile(file.path):
        return file.path
    raise _missing(recipe, file, option)


def model_path(recipe: str, file: SourceFile) -> str:
    """Where a recipe's model is: at the path recorded, or under its name beside the recipe's picture.

    There, only a file with the recorded checksum counts. Raises ValueError if it is in neither place.
    """
    if file.path is not None and (os.path.isfile(file.path) or os.path.isdir(file.path)):
        return file.path
    if os.path.basename(file.name) == file.name and len(file.sha256) >= HASH_DIGITS:
        beside = Path(recipe).parent / file.name
        if os.path.isfile(beside) and source_file(beside).same_as(file):
            return str(beside)
    raise _missing(recipe, file, "--model")


def _missing(recipe: str, file: SourceFile, option: str) -> ValueError:
    where = "whose path is not recorded" if file.path is None else f"which is not at {file.path!r:.300}"
    name = f"{file.name!r:.300}" if file.name else "an unnamed file"
    return ValueError(
        f"{recipe} was drawn with {name} "
        f"(sha256 {file.short_hash or 'unknown'}), {where}: give it with {option}"
    )
