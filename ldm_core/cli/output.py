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
    """A folder in which pictures are numbered, or one file. The first picture makes a folder that is missing.

    stem: what a numbered file's name begins with: `txt2img-0001.png`.
    file: the one file, if it is not to be numbered. force: overwrite it.
    """

    folder: Path
    stem: str
    file: Path | None = None
    force: bool = False
    _next: int = field(default=0, init=False)

    def save(self, image: Image, recipe: Recipe) -> Path:
        """Write a picture under a name that is still free, and return its path.

        Raises ValueError where the one file's name has been taken meanwhile, and OSError where nothing can be
        written.
        """
        data = png_bytes(image, recipe)
        self.folder.mkdir(exist_ok=True)
        # Several processes may number pictures in one folder, so the file is whole before it gets a number.
        with unfinished_file(self.file or self.folder / f"{self.stem}.png") as temporary:
            temporary.write_bytes(data)
            for path in self._names():
                with suppress(FileExistsError):
                    move_into_place(temporary, path, overwrite=self.force and path == self.file)
                    return path
        raise already_there(f"--output {self.file}")

    def save_steps(self, picture: Path, frames: Sequence[Image], strip: Image) -> list[Path]:
        """Write what a picture looked like after each step, numbered from 1, and the strip of them all.

        They go into a folder beside the picture; its paths are returned.
        """
        folder = steps_folder(picture)
        folder.mkdir(exist_ok=self.force)
        for old in folder.glob("[0-9][0-9][0-9][0-9].png"):  # --force, and there may have been more steps
            old.unlink()
        named = {f"{number:04d}.png": frame for number, frame in enumerate(frames, start=1)}
        named["strip.png"] = strip
        for name, image in named.items():
            write_whole(folder / name, partial(image.save, format="PNG"))
        return [folder / name for name in named]

    def _names(self) -> Iterator[Path]:
        """The names that a picture may get, in this order."""
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
    """Where `count` pictures shall go. Raises ValueError, before anything is drawn, if they cannot.

    name: an existing folder, a new folder's name that ends in a slash, or a file's name that ends in .png.
    steps: whether each picture gets a folder of its steps beside it.
    """
    path = Path(name)
    if path.is_dir():
        output = Output(path, stem)
    elif name.endswith(("/", os.sep)):
        if os.path.lexists(path):
            raise ValueError(f"--output {name}: a file of this name is already there")
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
        raise ValueError(f"--output {name}: {steps_folder(path)} is already there; --force overwrites it")
    else:
        output = Output(path.parent, stem, path, force)
    _require_writable(output.folder)
    return output


def already_there(target: str) -> ValueError:
    """The error for a file that is there; `target` is its path, or the option with it."""
    return ValueError(f"{target}: the file is already there; --force overwrites it")


def steps_folder(picture: Path) -> Path:
    """Where the steps of a picture are kept: `cat-steps` for `cat.png`."""
    return picture.with_name(f"{picture.stem}-steps")


def _require_writable(folder: Path) -> None:
    """Permissions tell too little (a full disk, a read-only mount, the administrator), so it is tried."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # which no crash can leave behind
            file.write(b"\0")
    except OSError as error:
        raise ValueError(f"--output: nothing can be written in {folder}: {error.strerror}") from None
