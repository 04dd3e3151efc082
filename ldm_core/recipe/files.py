"""The files that a picture was made from, as a recipe records them: names, checksums and paths."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_core.recipe.checks import NONE, check, read_built
from ldm_core.support.regular_file import open_regular

HASH_DIGITS = 10  # of a file's SHA-256, which web UIs show as "Model hash"
HASH_BLOCK = 2**22  # bytes


@dataclass(frozen=True)
class SourceFile:
    """A file that a picture was made from.

    sha256: checksum of the whole file, in hexadecimal. Other tools record only its first digits, or "".
    path: the path as it was given; None for the bundled model, if unknown, or if removed (`without_paths`).
    """

    name: str
    sha256: str
    path: str | None = None

    @property
    def short_hash(self) -> str:
        """The first digits of the SHA-256, as programs write them beside pictures."""
        return self.sha256[:HASH_DIGITS]

    def same_as(self, other: SourceFile) -> bool:
        """Whether the digits that both checksums have are equal. False if a checksum is missing."""
        digits = min(len(self.sha256), len(other.sha256))
        return digits > 0 and self.sha256[:digits] == other.sha256[:digits]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA with its scale, or a textual inversion with its name in prompts."""

    file: SourceFile
    scale: float = 1.0
    name: str | None = None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a whole file, in hexadecimal. Takes one to two seconds per gigabyte."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a folder: of the list of its files' checksums and names, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    for inner in sorted(entry for entry in Path(path).rglob("*") if entry.is_file()):
        digest.update(f"{file_sha256(inner)}  {inner.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def is_checksum(text: str) -> bool:
    """Whether a text is a SHA-256 checksum, its first digits, or empty."""
    return re.fullmatch("[0-9a-f]{0,64}", text) is not None


def source_file(path: str | os.PathLike[str], *, bundled: bool = False) -> SourceFile:
    """The record of a file or of a model's folder. Raises OSError if it cannot be read."""
    path = os.fspath(path)
    checksum = folder_sha256(path) if os.path.isdir(path) else file_sha256(path)
    return SourceFile(os.path.basename(os.path.normpath(path)), checksum, None if bundled else path)


def read_source(name: str, data: dict[str, Any]) -> SourceFile:
    """The record of a file from a recipe's JSON. Raises ValueError, naming the field, for an invalid one."""
    source: SourceFile = read_built(SourceFile, data, f"the recipe's {name}")
    check(f"{name}.sha256", source.sha256, (str,), "text")
    if not is_checksum(source.sha256):
        raise ValueError(f"{name}.sha256 must be up to 64 hexadecimal digits, not {source.sha256!r:.60}")
    check_file(name, source)
    return source


def check_file(name: str, file: SourceFile) -> None:
    """Raise ValueError, naming the field, unless a file's name and path are valid text."""
    check(f"{name}.name", file.name, (str,), "text")
    check(f"{name}.path", file.path, (str, NONE), "text or nothing")


def without_path(file: SourceFile | None) -> Any:
    """The record without the file's path."""
    return file and replace(file, path=None)


def read_adapter(name: str, data: Any) -> AdapterFile:
    if not isinstance(data, dict) or not isinstance(data.get("file"), dict):
        raise ValueError(f"the recipe's {name} must be a list of adapters with a file each, not {data!r:.60}")
    adapter: AdapterFile = read_built(AdapterFile, {**data, "file": read_source(name, data["file"])}, name)
    check(f"{name}.scale", adapter.scale, (float, int), "a number")
    check(f"{name}.name", adapter.name, (str, NONE), "text or nothing")
    return adapter
