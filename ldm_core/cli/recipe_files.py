"""The files that a recipe names, and which of them `--from` reads.

The recipe of an untrusted picture could name any file of this machine, such as a pipe that blocks or a
private picture, which would show in the result. `--from` reads a local model from the recorded path, since
reading a checkpoint executes nothing. It reads a model on another machine, to which Windows would send the
user's credentials, and every other recorded file only with `--trust-paths` or if the file's own option is
given.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ldm_core.config import PRESETS
from ldm_core.recipe import Recipe, SourceFile, source_file
from ldm_core.recipe.files import HASH_DIGITS
from ldm_core.support.printable import few

FILES_SHOWN = 20
CONTROL_FILES = {  # the options for the files of controls and image prompts, by their names in the arguments
    "controls": "--control",
    "hints": "--hint",
    "ip_adapter": "--ip-adapter",
    "clip": "--clip",
    "image_prompts": "--image-prompt",
}


def require_trust(args: Namespace, again: Recipe, pictures: Sequence[str]) -> None:
    """Raise ValueError, listing the recorded files that need trust, unless `--trust-paths` is given.

    pictures: the fields of input files that the command reads, such as "image" and "mask".
    """
    if not args.trust_paths:
        refuse_untrusted(args, _files_to_trust(args, again, pictures))


def refuse_untrusted(args: Namespace, named: Sequence[str]) -> None:
    """Raise ValueError for files that a recipe names, each as an option, unless `--trust-paths` is given."""
    if named and not args.trust_paths:
        raise ValueError(
            f"{args.recipe} names files that are read only with --trust-paths, or if given as options: "
            f"{few(named, FILES_SHOWN)}"
        )


def _files_to_trust(args: Namespace, again: Recipe, pictures: Sequence[str]) -> list[str]:
    """The recorded files that need trust, each as a command-line option."""
    named = []
    if args.model is None and re.match(r"[\\/]{2}", again.model.path or ""):
        named.append((_model_option(args), again.model.path))
    for name in (*pictures, "autoencoder"):
        file: SourceFile | None = getattr(again, name)
        if file is not None and getattr(args, name, None) is None:
            named.append((option_of(name), file.path or file.name))
    for kind in ("loras", "embeddings"):
        for adapter in getattr(again, kind) if getattr(args, kind) is None else ():
            place = adapter.file.path or adapter.file.name
            named.append((f"--{kind.removesuffix('s')}", f"{place}={adapter.name or adapter.scale}"))
    if "controls" in args:
        for name, files in control_files(again).items():
            if getattr(args, name) is None:
                named += [(CONTROL_FILES[name], file.path or file.name) for file in files]
    if again.config is not None and again.config not in PRESETS and args.config is None:
        named.append(("--config", again.config))
    return [f"{option} {value!r:.300}" for option, value in named]


def control_files(recipe: Recipe) -> dict[str, list[SourceFile]]:
    """The files of a recipe's controls and image prompt, by the names in `CONTROL_FILES`."""
    return {
        "controls": [one.network for one in recipe.controls],
        "hints": [one.hint for one in recipe.controls],
        "ip_adapter": [recipe.ip_adapter] if recipe.ip_adapter else [],
        "clip": [recipe.clip] if recipe.clip else [],
        "image_prompts": list(recipe.image_prompts),
    }


def option_of(field: str) -> str:
    """The option that gives the file of a recipe's field."""
    return "--embeddings" if field == "clip_embeddings" else f"--{field}"


def _model_option(args: Namespace) -> str:
    return "FILE" if args.command in ("sample", "upscale") else "--model"


def recorded_path(recipe: str, file: SourceFile, option: str, *, folder: bool = False) -> str:
    """The recorded path of a file, or also of a folder. Raises ValueError, naming its option, without one."""
    if file.path is not None and (os.path.isfile(file.path) or (folder and os.path.isdir(file.path))):
        return file.path
    raise _missing(recipe, file, option)


def model_path(args: Namespace, file: SourceFile) -> str:
    """The path of a recipe's model: the recorded path, or a file of the same name beside the picture.

    The file beside the picture must have the recorded checksum. Raises ValueError if neither exists.
    """
    if file.path is not None and (os.path.isfile(file.path) or os.path.isdir(file.path)):
        return file.path
    if os.path.basename(file.name) == file.name and len(file.sha256) >= HASH_DIGITS:
        beside = Path(args.recipe).parent / file.name
        if os.path.isfile(beside) and source_file(beside).same_as(file):
            return str(beside)
    raise _missing(args.recipe, file, _model_option(args))


def _missing(recipe: str, file: SourceFile, option: str) -> ValueError:
    where = "whose path is not recorded" if file.path is None else f"not found at {file.path!r:.300}"
    name = f"{file.name!r:.300}" if file.name else "an unnamed file"
    return ValueError(
        f"{recipe} was drawn with {name} "
        f"(sha256 {file.short_hash or 'unknown'}), {where}: give it with {option}"
    )
