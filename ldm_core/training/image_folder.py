"""A folder of pictures and their captions.

Captions are in a `metadata.jsonl` or `metadata.csv`, whose rows have a `file_name`, relative to that file,
and a `text` (the imagefolder convention of the `datasets` library); or, with neither there, in a `.txt` file
beside each picture. In `metadata.jsonl`, `text` may be a list; it, and several rows for one picture, are
captions of which training draws one each time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import few
from ldm_core.training.dataset import ENDINGS, Sample, decode_picture

Row = tuple[str, tuple[str, ...]]  # a file's name and its captions


class ImageFolder:
    """The pictures below a folder, in the order of their names, as squares of `size` pixels.

    names, texts   of each sample: the file, relative to the folder, and its captions

    captions: whether they are wanted; without, a folder needs none and `texts` are empty.
    Rows that name no picture, and pictures without a caption, are left out with a warning that names them.
    Raises ValueError where nothing is left, and for a metadata file that cannot be understood.
    """

    def __init__(self, folder: str | Path, size: int, *, captions: bool = True) -> None:
        self.folder, self.size = Path(folder), size
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels, not {size}")
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: there is no such folder")
        found = {path.relative_to(self.folder).as_posix() for path in _pictures(self.folder)}
        if not found:
            raise ValueError(f"{self.folder}: no pictures in it or below it ({', '.join(ENDINGS)})")
        texts = self._captions(found) if captions else dict.fromkeys(found, ())
        self.names = sorted(texts)
        self.texts = [texts[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        return {"image": decode_picture(self.folder / name, name, self.size), "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        return self.texts[index]

    @property
    def fingerprint(self) -> str:
        """Of the pictures' names, lengths and times of change, and the size; captions do not count."""
        stats = [(self.folder / name).stat() for name in self.names]
        facts = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(self.names, stats)]
        return hashlib.sha256(repr((self.size, facts)).encode()).hexdigest()

    def _captions(self, found: set[str]) -> dict[str, tuple[str, ...]]:
        files = [self.folder / name for name in ("metadata.jsonl", "metadata.csv")]
        metadata = next((file for file in files if file.is_file()), None)
        texts: dict[str, tuple[str, ...]] = {}
        if metadata is None:
            texts = {name: text for name in found if (text := _text_beside(self.folder / name))}
            where = "has a .txt file beside it with a caption, and there is no metadata.jsonl or metadata.csv"
        else:
            for name, captions in _jsonl(metadata) if metadata.suffix == ".jsonl" else _csv(metadata):
                texts[name] = texts.get(name, ()) + captions
            _warn(f"{metadata}: names pictures that are not there", set(texts) - found)
            where = f"is named with a caption in {metadata.name}"
            texts = {name: text for name, text in texts.items() if name in found and text}
        if not texts:
            raise ValueError(f"{self.folder}: none of its {len(found)} pictures {where}")
        _warn(f"{self.folder}: pictures without a caption are left out", found - set(texts))
        return texts


def _pictures(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            yield path


def _warn(what: str, names: set[str]) -> None:
    if names:
        warnings.warn(f"{what}: {few(sorted(names))}", stacklevel=5)


def _text_beside(picture: Path) -> tuple[str, ...]:
    """The whole file as one caption, with its line breaks as spaces; () where it is empty or not there."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return ()
    try:
        return _nonempty([_read(path)])
    except ValueError as error:
        warnings.warn(str(error), stacklevel=6)
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
        yield _name(row.get("file_name"), f"{path}, line {number}"), _nonempty(texts)


def _csv(path: Path) -> Iterator[Row]:
    table = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    columns = table.fieldnames or []
    if not {"file_name", "text"} <= set(columns):
        raise ValueError(
            f"{path}: expected the columns file_name and text, got {', '.join(columns) or 'none'}"
        )
    try:
        for row in table:
            yield _name(row["file_name"], f"{path}, line {table.line_num}"), _nonempty([row["text"] or ""])
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


def _nonempty(texts: list[str]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts if text.strip())
