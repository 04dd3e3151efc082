"""A dataset of a folder of images with captions.

Captions come from `metadata.jsonl` or `metadata.csv`, whose rows have a `file_name`, relative to that file,
and a `text` (the ImageFolder convention of the `datasets` library). Without a metadata file, they come from a
`.txt` file beside each image. An image may have several captions: a list as `text` in `metadata.jsonl`, or
several rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ldm_core.images import ENDINGS, picture_files
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import few
from ldm_core.support.warn import warn
from ldm_core.training.dataset import Sample, clean_captions, decode_picture, files_fingerprint

Row = tuple[str, tuple[str, ...]]  # a file's name and its captions


class ImageFolder:
    """The images in a folder and its subfolders, sorted by name, as squares of `size` pixels.

    names, texts   each sample's file, relative to the folder, and its captions

    captions: whether to read captions; if False, `texts` are empty and all images are used.
    Warns about rows without an image and skips images without a caption. Raises ValueError if no sample is
    left or a metadata file is invalid.
    """

    def __init__(self, folder: str | Path, size: int, *, captions: bool = True) -> None:
        self.folder, self.size = Path(folder), size
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels, not {size}")
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: the folder does not exist")
        found = {path.relative_to(self.folder).as_posix() for path in picture_files(self.folder)}
        if not found:
            endings = ", ".join(ENDINGS)
            raise ValueError(f"{self.folder}: no images in the folder or its subfolders ({endings})")
        texts = self._captions(found) if captions else dict.fromkeys(found, ())
        self.names = sorted(texts)
        self.texts = [texts[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        return {"image": decode_picture(self.folder / name, name, self.size), "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of one image, without reading the image."""
        return self.texts[index]

    @property
    def fingerprint(self) -> str:
        """Of the image files and the size; captions do not count."""
        return files_fingerprint((self.size,), ((name, self.folder / name) for name in self.names))

    def _captions(self, found: set[str]) -> dict[str, tuple[str, ...]]:
        files = [self.folder / name for name in ("metadata.jsonl", "metadata.csv")]
        metadata = next((file for file in files if file.is_file()), None)
        texts: dict[str, tuple[str, ...]] = {}
        if metadata is None:
            texts = {name: text for name in found if (text := _text_beside(self.folder / name))}
            where = "has a caption in a .txt file, and there is no metadata.jsonl or metadata.csv"
        else:
            for name, captions in _jsonl(metadata) if metadata.suffix == ".jsonl" else _csv(metadata):
                texts[name] = texts.get(name, ()) + captions
            _warn(f"{metadata}: images do not exist", set(texts) - found)
            where = f"has a caption in {metadata.name}"
            texts = {name: text for name, text in texts.items() if name in found and text}
        if not texts:
            raise ValueError(f"{self.folder}: none of its {len(found)} images {where}")
        _warn(f"{self.folder}: skipped images without a caption", found - set(texts))
        return texts


def _warn(what: str, names: set[str]) -> None:
    if names:
        warn(f"{what}: {few(sorted(names))}")


def _text_beside(picture: Path) -> tuple[str, ...]:
    """The whole file as one caption; () if it is empty or does not exist."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return ()
    try:
        return clean_captions([_read(path)])
    except ValueError as error:
        warn(str(error))
        return ()


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        texts = row.get("text") if isinstance(row, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}, line {number}: expected 'file_name' and 'text', got {line[:80]}")
        yield _name(row.get("file_name"), f"{path}, line {number}"), clean_captions(texts)


def _csv(path: Path) -> Iterator[Row]:
    table = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    columns = table.fieldnames or []
    if not {"file_name", "text"} <= set(columns):
        raise ValueError(
            f"{path}: expected the columns file_name and text, got {', '.join(columns) or 'none'}"
        )
    try:
        for row in table:
            yield (
                _name(row["file_name"], f"{path}, line {table.line_num}"),
                clean_captions([row["text"] or ""]),
            )
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num}: not CSV ({error})") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def _name(name: object, where: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: expected a file_name, got {name!r}")
    return PurePosixPath(name.strip()).as_posix()  # "./a.png" is "a.png"
