"""Where pictures are written: numbered in a folder or into one file, without overwriting another."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_core.recipe import Recipe
from ldm_core.recipe.png import png_bytes
from ldm_core.support.atomic_files import move_into_place, unfinished_file, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Output:
    """A folder of numbered pictures, or one file. The first picture makes a missing folder.

    stem: the beginning of a numbered file's name, such as "txt2img" in `txt2img-0001.png`.
    file: the one file, or None to number pictures. force: whether to overwrite it.
    """

    folder: Path
    stem: str
    file: Path | None = None
    force: bool = False
    _next: int = field(default=0, init=False)

    def save(self, image: Image, recipe: Recipe) -> Path:
        """Write a picture under a free name and return its path.

        Raises ValueError if the one file's name was taken meanwhile, and OSError if the picture cannot be
        written.
        """
        data = png_bytes(image, recipe)
        self.folder.mkdir(exist_ok=True)
        # Other processes may number pictures in this folder, so a complete file takes the number atomically.
        with unfinished_file(self.file or self.folder / f"{self.stem}.png") as temporary:
            temporary.write_bytes(data)
            for path in self._names():
                with suppress(FileExistsError):
                    move_into_place(temporary, path, overwrite=self.force and path == self.file)
                    return path
        raise already_there(f"--output {self.file}")

    def save_steps(self, picture: Path, frames: Sequence[Image], strip: Image) -> list[Path]:
        """Write a picture's frame after each step, numbered from 1, and the strip of all frames.

        The files go into a folder beside the picture. Returns their paths.
        """
        folder = steps_folder(picture)
        folder.mkdir(exist_ok=self.force)
        for old in folder.glob(
            "[0-9][0-9][0-9][0-9].png"
        ):  # with --force, an earlier run may have had more steps
            old.unlink()
        named = {f"{number:04d}.png": frame for number, frame in enumerate(frames, start=1)}
        named["strip.png"] = strip
        for name, image in named.items():
            write_whole(folder / name, partial(image.save, format="PNG"))
        return [folder / name for name in named]

    def _names(self) -> Iterator[Path]:
        """The names to try for the next picture, in this order."""
        if self.file is not None:
            yield self.file
            return
        if not self._next:
            pattern = re.compile(re.escape(self.stem) + r"-(\d{1,9})\b")
            taken = [int(m[1]) for name in os.listdir(self.folder) if (m := pattern.match(name))]
            self._next = max(taken, default=0) + 1
        while True:
            self._next += 1
            yield self.folder / f"{self.stem}-{self._next - 1:04d}.png"


def find_output(name: str, stem: str, *, count: int, steps: bool, force: bool) -> Output:
    """The output for `count` pictures. Raises ValueError if they cannot be written there.

    name: an existing folder, a new folder's name that ends in a slash, or a file's name that ends in .png.
    steps: whether each picture gets a folder of its steps beside it.
    """
    path = Path(name)
    if path.is_dir():
        output = Output(path, stem)
    elif name.endswith(("/", os.sep)):
        if os.path.lexists(path):
            raise ValueError(f"--output {name}: a file of this name already exists")
        _require_writable(path.parent)
        return Output(path, stem)
    elif path.suffix.lower() != ".png":
        raise ValueError(
            f"--output {name}: expected an existing folder, a new folder's name with a slash at its end, "
            "or a file name that ends in .png"
        )
    elif count > 1:
        raise ValueError(f"--output {name}: {count} pictures do not fit in one file; give a folder")
    elif os.path.lexists(path) and not force:
        raise already_there(f"--output {path}")
    elif steps and steps_folder(path).exists() and not force:
        raise ValueError(
            f"--output {name}: the folder {steps_folder(path)} already exists; --force overwrites it"
        )
    else:
        output = Output(path.parent, stem, path, force)
    _require_writable(output.folder)
    return output


def already_there(target: str) -> ValueError:
    """The error for a file that already exists; `target` is its path, or the option with its path."""
    return ValueError(f"{target}: the file already exists; --force overwrites it")


def steps_folder(picture: Path) -> Path:
    """The folder for the steps of a picture: `cat-steps` for `cat.png`."""
    return picture.with_name(f"{picture.stem}-steps")


def _require_writable(folder: Path) -> None:
    """Write one byte: permissions do not reveal a full disk or a read-only mount."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # no crash leaves this file behind
            file.write(b"\0")
    except OSError as error:
        raise ValueError(f"--output: cannot write into {folder}: {error.strerror}") from None
