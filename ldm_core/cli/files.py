"""The command line's files: where pictures go, without overwriting one, and the pictures that come in."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ldm_core.images import open_picture, to_grey, to_rgb
from ldm_core.recipe import Recipe, SourceFile, source_file
from ldm_core.recipe.png import png_bytes
from ldm_core.support.atomic_files import move_into_place, unfinished_file, write_whole
from ldm_core.support.printable import shown_error
from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PROMPTS_BYTES = 2**24

# Lengths are bounded, so that the time to search a prompt is proportional to its length.
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
_WEIGHT = re.compile(r"(?<!\\)\([^()]{1,200}:\s{0,9}(?:\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})\s{0,9}\)")


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


@dataclass(frozen=True)
class Inputs:
    """The pictures that a drawing starts from, with the record of their files."""

    image: Image | None = None
    mask: Image | None = None
    image_file: SourceFile | None = None
    mask_file: SourceFile | None = None


def open_inputs(image: str | None, mask: str | None, size: tuple[int, int] | None) -> Inputs:
    """Open what is there, upright. With a size (width, height), fit it: cut to its proportions, then scale.

    Raises OSError for a file that cannot be opened, ValueError for one that is no picture, and for a mask of
    another size than the image.
    """
    if image is None:
        return Inputs()
    image_file, picture = _open(image, to_rgb)
    if mask is None:
        return Inputs(_fitted(picture, size), None, image_file)
    mask_file, white = _open(mask, to_grey)
    if white.size != picture.size:
        sizes = ["×".join(map(str, one.size)) for one in (white, picture)]
        raise ValueError(f"the mask has {sizes[0]} pixels, the image {sizes[1]}; they must be the same")
    return Inputs(_fitted(picture, size), _fitted(white, size), image_file, mask_file)


def _open(path: str, convert: Callable[[Image], Image]) -> tuple[SourceFile, Image]:
    try:
        picture = convert(open_picture(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return source_file(path), picture


def _fitted(image: Image, size: tuple[int, int] | None) -> Image:
    from PIL import Image as PIL
    from PIL import ImageOps

    if size is None or image.size == size:
        return image
    return ImageOps.fit(image, size, PIL.Resampling.LANCZOS if image.mode == "RGB" else PIL.Resampling.BOX)


def read_prompts(name: str) -> list[str]:
    """The prompts of a UTF-8 file, or of standard input for "-": one per line.

    Blank lines and comments, which begin with "#", are skipped. A prompt that begins with "#" is written with
    a backslash before it. Raises ValueError for a file without prompts, OSError for one that cannot be read.
    """
    try:
        text = _bytes(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {name}: not UTF-8 text (byte {error.start})") from None
    lines = [line.strip() for line in text.split("\n")]
    prompts = [
        line.removeprefix("\\") if line.startswith("\\#") else line for line in lines if line[:1] != "#"
    ]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ValueError(
            f"--prompts {name}: no prompts in {'standard input' if name == '-' else 'this file'}"
        )
    return prompts


def _bytes(name: str) -> bytes:
    if name != "-":
        with open_regular(name, MAX_PROMPTS_BYTES) as file:
            return file.read(MAX_PROMPTS_BYTES)
    data = sys.stdin.buffer.read(MAX_PROMPTS_BYTES + 1)
    if len(data) > MAX_PROMPTS_BYTES:
        raise ValueError(f"--prompts -: more than {MAX_PROMPTS_BYTES:,} bytes of prompts")
    return data


def uninterpreted(prompts: Iterable[str]) -> list[str]:
    """The first LoRA tag and the first weight in the web UIs' grammar, `<lora:NAME:1>` and `(text:1.2)`."""
    found = (next(filter(None, map(pattern.search, prompts)), None) for pattern in (_TAG, _WEIGHT))
    return [match[0] for match in found if match is not None]


def usable_device(name: str | None) -> torch.device:
    """A device that works here; without a name, a GPU if there is one. Raises ValueError for another."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {shown_error(error)}") from None
    return device
