"""Reads checkpoints of all formats without executing code in them.

`read` determines the format from the file's content. Tensors are views of a private memory map, so a file of
4 GB opens within a moment and uses memory only when its tensors are used. Pickles are never unpickled; see
`pickle_reader`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ldm_core.checkpoint.file_bytes import Access, FileBytes
from ldm_core.checkpoint.file_kind import Format, identify
from ldm_core.checkpoint.folder import is_diffusers_folder, read_folder
from ldm_core.checkpoint.legacy_reader import read_legacy
from ldm_core.checkpoint.safetensors_reader import read_safetensors
from ldm_core.checkpoint.torch_zip import read_torch_zip, verify_torch_zip
from ldm_core.errors import CheckpointError
from ldm_core.support.printable import shown_error


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file.

    tensors    by the file's names, on the CPU, in the file's dtypes, in a private memory map if possible.
               Writing to one changes neither the file nor another reader's tensors
    metadata   all other content as plain values (None, bool, int, float, str, list, dict): `epoch`,
               `global_step`, `callbacks` …, or safetensors' `__metadata__`. Other values become a short text
               in angle brackets. For a diffusers folder: its JSON files, by name
    foreign    dotted names of the classes and functions in a pickle that were not imported
    """

    path: Path
    format: Format
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    foreign: tuple[str, ...] = ()


Contents = tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]

_READERS: dict[Format, Callable[[FileBytes], Contents]] = {
    "safetensors": read_safetensors,
    "torch-zip": read_torch_zip,
    "torch-legacy": read_legacy,
}


def read(
    path: str | os.PathLike[str],
    *,
    mmap: bool = True,
    values: bool | Literal["small"] = True,
    variant: str | None = None,
    verify: bool = False,
) -> Checkpoint:
    """Read a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file, or a diffusers folder.

    The content of a file determines its format. A folder can be a whole model or a part of one.

    mmap: False copies the tensors into memory, so that the file can be overwritten or deleted afterwards.
    values: False puts all tensors on the meta device, with names, shapes and dtypes only, which takes a
    moment
        for any file; "small" puts tensors of more than 16 KiB there.
    variant: the files of a folder to read, such as "fp16".
    verify: True reads a whole zip archive and compares it with its checksums. The other formats have none.
    Raises CheckpointError, in one line that begins with the path, for a file that is missing, damaged, or not
    a checkpoint.
    """
    path = Path(path)
    with errors_named(path):
        is_folder = path.is_dir() and is_diffusers_folder(path)
    if variant is not None and not is_folder:
        raise CheckpointError(f"{path}: variant={variant!r} applies to diffusers folders only")
    if is_folder:
        with errors_named(path):
            contents = read_folder(path, variant, partial(read, mmap=mmap, values=values, verify=verify))
        return Checkpoint(path, "diffusers", *contents)
    access: Access = "small" if values == "small" else "none" if not values else "map" if mmap else "copy"
    with errors_named(path), _open(path, access) as file:
        kind = identify(file)
        if verify and kind == "torch-zip":
            verify_torch_zip(file)
        tensors, metadata, foreign = _READERS[kind](file)
    return Checkpoint(path, kind, tensors, metadata, foreign)


def _open(path: Path, access: Access) -> FileBytes:
    if sys.byteorder != "little":
        raise CheckpointError("checkpoints can only be read on a little-endian machine")
    if path.is_dir():
        raise CheckpointError(_describe_folder(path))
    return FileBytes(path, access)


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Convert every error of reading to a CheckpointError that begins with the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except CheckpointError as error:
        if str(error).startswith(str(path)):  # the error of a file in the folder
            raise
        raise CheckpointError(f"{path}: {error}") from error
    # Python raises ValueError for a path with NUL, and PyTorch RuntimeError if memory is insufficient.
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({shown_error(error)})") from error


def _describe_folder(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    files = [name for name in names if name.endswith((".ckpt", ".safetensors", ".pt", ".pth", ".bin"))]
    shown = ", ".join((files or names)[:5]) or "nothing"
    return f"not a diffusers folder (no model_index.json); the folder contains {shown}"
