"""Reading the rows of a job from a file, a part at a time.

    .txt            one prompt per line; blank lines and comments, which begin with "#", are skipped
    .csv, .tsv      with the names of the columns in the first line
    .jsonl          one JSON object per line
    .parquet        and a folder that `datasets` has saved: see `tables`

The id of a row is its column "id", or else its number: the line of a .txt file, otherwise counted from 1.

A file is scanned once. Then the rows of a shard are read from its place, so the memory needed does not depend
on the size of the file.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ldm_core.jobs.rows import COLUMNS, id_of
from ldm_core.recipe.files import SourceFile, source_file
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import printable, shown
from ldm_core.support.regular_file import open_regular

MAX_LINE = 2**20  # bytes
MAX_NAMED = 5  # ids in an error

Values = dict[str, Any]  # of a row, by column
Place = list[int]  # where the rows of a shard begin, as the source understands it


class Source(Protocol):
    """Rows in their order, with their numbers from 0."""

    @property
    def path(self) -> Path: ...

    def columns(self) -> list[str]:
        """The names of the columns; of the first row, if rows may differ. [] without rows."""

    def read(
        self, start: int, place: Place | None, only: str | None = None
    ) -> Iterator[tuple[Values, Place | None]]:
        """The rows from number `start` on, each with the place of the row after it.

        only: a column; the others may be left out.
        """


@dataclass(frozen=True)
class Scan:
    """What a scan finds: the number of rows, the SHA-256 of their ids, and the place of each shard."""

    count: int
    ids: str
    places: list[Place | None]


@dataclass(frozen=True)
class Rows:
    """The rows of a source, with the columns renamed.

    columns: the name in the file of some of COLUMNS, such as {"prompt": "caption"}.
    """

    source: Source
    file: SourceFile
    columns: Mapping[str, str]

    def names(self) -> list[str]:
        """The columns by the names that rows have. Raises ValueError if a renamed one is missing."""
        found = self.source.columns()
        for name, column in self.columns.items():
            if name not in COLUMNS:
                raise ValueError(f"expected one of {', '.join(COLUMNS)} as a column, not {shown(name)}")
            if column not in found:
                known = printable(", ".join(found[:20]))
                raise ValueError(f"{self.source.path} has no column {shown(column)}; it has {known}")
        return list(self._renamed(dict.fromkeys(found)))

    def read(self, start: int, count: int, place: Place | None) -> list[Values]:
        """The values of `count` rows, with their ids. Raises ValueError or OSError."""
        rows = []
        for number, (values, _) in enumerate(islice(self.source.read(start, place), count), start=start):
            rows.append(self._with_id(values, number))
        return rows

    def scan(self, shard_size: int) -> Scan:
        """Read everything once. Raises ValueError, naming the rows, for doubled or missing ids."""
        digest, short = hashlib.sha256(), array("Q")
        places: list[Place | None] = []
        after: Place | None = None
        for number, (values, next_place) in enumerate(self.source.read(0, None, self._id_column)):
            if number % shard_size == 0:
                places.append(after)
            after = next_place
            name = self._with_id(values, number)["id"].encode()
            digest.update(name + b"\n")
            short.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big"))
        if not short:
            raise ValueError(f"{self.source.path}: there are no rows")
        self._require_unique(short)
        return Scan(len(short), digest.hexdigest(), places)

    def _require_unique(self, short: array[int]) -> None:
        """short: 64 bits of each id's hash, so that a million ids need 8 MB."""
        ordered = np.sort(np.frombuffer(short, dtype=np.uint64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not suspects:
            return
        first: dict[str, int] = {}
        doubled: list[str] = []
        for number, (values, _) in enumerate(self.source.read(0, None, self._id_column)):
            if short[number] in suspects:
                name = self._with_id(values, number)["id"]
                if name in first:
                    doubled.append(f"{shown(name)} of rows {first[name] + 1} and {number + 1}")
                first.setdefault(name, number)
        if doubled:
            more = f", and {len(doubled) - MAX_NAMED} more" if len(doubled) > MAX_NAMED else ""
            raise ValueError(f"{self.source.path}: doubled ids: {'; '.join(doubled[:MAX_NAMED])}{more}")

    @property
    def _id_column(self) -> str:
        return self.columns.get("id", "id")

    def _with_id(self, values: Values, number: int) -> Values:
        values = self._renamed(values)
        try:
            values["id"] = id_of(values.get("id", str(number + 1)))
        except ValueError as error:
            raise ValueError(f"{self.source.path}: row {number + 1}: {error}") from None
        return values

    def _renamed(self, values: Values) -> Values:
        if not self.columns:
            return dict(values)
        renamed = {*self.columns, *self.columns.values()}
        kept = {name: value for name, value in values.items() if name not in renamed}
        return kept | {name: values[column] for name, column in self.columns.items() if column in values}


def open_rows(path: str | Path, columns: Mapping[str, str] | None = None) -> Rows:
    """The rows of a file, or of a folder that `datasets` has saved, by the path's ending.

    Raises ValueError for another ending and OSError for a file that cannot be read; ImportError, naming the
    package, if one is missing for this kind of file.
    """
    path = Path(path)
    if path.is_dir():
        from ldm_core.jobs.tables import DatasetFolder

        return Rows(DatasetFolder(path), source_file(path), columns or {})
    ending = path.suffix.lower()
    if ending == ".parquet":
        from ldm_core.jobs.tables import Parquet

        return Rows(Parquet(path), source_file(path), columns or {})
    if ending not in TEXTS:
        expected = ", ".join((*TEXTS, ".parquet"))
        raise ValueError(f"{path}: expected one of {expected}, or a folder that `datasets` has saved")
    open_regular(path).close()
    return Rows(TextFile(path, TEXTS[ending]), source_file(path), columns or {})


class _Lines:
    """The lines of a file as text, with the position and number of the next one."""

    def __init__(self, file: BinaryIO, path: Path, place: Place | None) -> None:
        self.file, self.path = file, path
        self.position, self.number = place or [0, 1]
        file.seek(self.position)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        data = self.file.readline(MAX_LINE + 1)
        if not data:
            raise StopIteration
        if len(data) > MAX_LINE:
            raise ValueError(f"{self.path}: line {self.number} has more than {MAX_LINE:,} bytes")
        try:
            text = data.decode("utf-8-sig" if self.position == 0 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: line {self.number} is not UTF-8 text") from None
        self.position += len(data)
        self.number += 1
        return text

    @property
    def place(self) -> Place:
        return [self.position, self.number]


Parse = Callable[[_Lines, Sequence[str]], Iterable[Values]]


@dataclass(frozen=True)
class Format:
    """A format of text. parse: the values of rows from lines and the names in the header, if it has one."""

    parse: Parse
    header: Callable[[_Lines], list[str]] | None = None


@dataclass(frozen=True)
class TextFile:
    """The rows of a text file."""

    path: Path
    format: Format

    def columns(self) -> list[str]:
        with open_regular(self.path) as file:
            if self.format.header is not None:
                return self.format.header(_Lines(file, self.path, None))
        first, _ = next(self.read(0, None), ({}, None))
        return list(first)

    def read(
        self, start: int, place: Place | None, only: str | None = None
    ) -> Iterator[tuple[Values, Place]]:
        with open_regular(self.path) as file:
            lines = _Lines(file, self.path, None)
            names = [] if self.format.header is None else self.format.header(lines)
            if place is not None:
                lines = _Lines(file, self.path, place)
            for values in self.format.parse(lines, names):
                yield values, lines.place


def _prompts(lines: _Lines, names: Sequence[str]) -> Iterator[Values]:
    for line in lines:
        prompt = line.strip()
        if prompt and prompt[0] != "#":
            prompt = prompt.removeprefix("\\") if prompt.startswith("\\#") else prompt
            yield {"id": str(lines.number - 1), "prompt": prompt}


def _objects(lines: _Lines, names: Sequence[str]) -> Iterator[Values]:
    for line in lines:
        if line.strip():
            source = f"{lines.path}: line {lines.number - 1}"
            values = parse_json(line, source)
            if not isinstance(values, dict):
                raise ValueError(f"{source}: expected an object, not {shown(values)}")
            yield values


def _table(delimiter: str) -> Format:
    def records(lines: _Lines) -> Iterator[list[str]]:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            yield from filter(None, reader)
        except csv.Error as error:
            raise ValueError(f"{lines.path}: line {lines.number - 1}: {error}") from None

    def header(lines: _Lines) -> list[str]:
        names = [name.strip() for name in next(records(lines), [])]
        if len(set(names)) < len(names):
            raise ValueError(f"{lines.path}: a column occurs twice in the first line")
        return names

    def rows(lines: _Lines, names: Sequence[str]) -> Iterator[Values]:
        for record in records(lines):
            if len(record) != len(names):
                raise ValueError(
                    f"{lines.path}: line {lines.number - 1} has {len(record)} values, the first line "
                    f"{len(names)} columns"
                )
            yield dict(zip(names, record))

    return Format(rows, header)


TEXTS = {".txt": Format(_prompts), ".csv": _table(","), ".tsv": _table("\t"), ".jsonl": Format(_objects)}
