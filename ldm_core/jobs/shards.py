"""Writing the pictures of a shard, whole or not at all: a tar file, a parquet file, or a folder.

webdataset   shard-000012.tar: NUMBER.png and NUMBER.json for each row
parquet      shard-000012.parquet: id, image, text, seed, error and recipe, as `datasets` reads it
folder       shard-000012/: the files of the tar file

NUMBER is the row's number in the job, from 0. The JSON of a row has its "id", and "text" (the prompt), "seed"
and "recipe", or else an "error" and no picture. The recipe is in the PNG file as well.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm_core.jobs.draw import Drawn
from ldm_core.jobs.tables import imported
from ldm_core.recipe.fields import Recipe, to_json
from ldm_core.recipe.png import png_bytes
from ldm_core.support.atomic_files import write_whole, write_whole_folder

ROWS_AT_ONCE = 64  # of a parquet file, which are kept in memory until they are written
MAX_PART = 2**28  # bytes of one picture or record that is read


@dataclass(frozen=True)
class Entry:
    """A row as it is written. number: of the row in the job, from 0. png: its picture, if it has one."""

    number: int
    id: str
    png: bytes | None = None
    recipe: Recipe | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        return f"{self.number:08d}"

    @property
    def checksum(self) -> str | None:
        """SHA-256 of the PNG file."""
        return None if self.png is None else sha256(self.png).hexdigest()

    def record(self) -> str:
        """The row's JSON."""
        head = {"id": self.id}
        if self.recipe is None:
            return json.dumps(head | {"error": self.error})
        head |= {"text": self.recipe.prompt, "seed": self.recipe.seed}  # type: ignore[dict-item]
        return f'{json.dumps(head)[:-1]}, "recipe": {to_json(self.recipe)}}}'


def entry_of(drawn: Drawn, first: int) -> Entry:
    """The entry of a row in a shard that begins with row `first`."""
    number = first + drawn.index
    if drawn.image is None or drawn.recipe is None:
        return Entry(number, drawn.id, error=drawn.error)
    return Entry(number, drawn.id, png_bytes(drawn.image, drawn.recipe), drawn.recipe)


@dataclass(frozen=True)
class Format:
    """A way to write shards.

    write: writes all entries to a new file (or folder) of this path, whole or not at all.
    read: the PNG files and the JSON texts, each with a key that those of a row have in common.
    """

    ending: str
    write: Callable[[Path, Iterable[Entry]], None]
    read: Callable[[Path], Iterator[tuple[str, bytes | None, str | None]]]


def _write_tar(path: Path, entries: Iterable[Entry]) -> None:
    def write(temporary: Path) -> None:
        # USTAR headers without times and owners: the same pictures give the same bytes.
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in _files(entries):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    write_whole(path, write)


def _write_folder(path: Path, entries: Iterable[Entry]) -> None:
    def fill(temporary: Path) -> None:
        for name, data in _files(entries):
            (temporary / name).write_bytes(data)

    write_whole_folder(path, fill)


def _files(entries: Iterable[Entry]) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        if entry.png is not None:
            yield f"{entry.key}.png", entry.png
        yield f"{entry.key}.json", entry.record().encode()


def _write_parquet(path: Path, entries: Iterable[Entry]) -> None:
    write_whole(path, partial(_fill_parquet, entries))


def _fill_parquet(entries: Iterable[Entry], temporary: Path) -> None:
    arrow, parquet = imported("pyarrow", "pyarrow"), imported("pyarrow.parquet", "pyarrow")
    text = arrow.string()
    picture = arrow.struct([("bytes", arrow.binary()), ("path", text)])
    seed = arrow.int64()
    columns = {"id": text, "image": picture, "text": text, "seed": seed, "error": text, "recipe": text}
    # `datasets` knows from this that the column holds pictures.
    features = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in columns.items()}
    info = {"info": {"features": features | {"image": {"_type": "Image"}}}}
    schema = arrow.schema(list(columns.items()), metadata={"huggingface": json.dumps(info)})
    with parquet.ParquetWriter(temporary, schema, compression="none") as writer:
        rows: list[dict[str, Any]] = []
        for entry in entries:
            rows.append(_row(entry))
            if len(rows) == ROWS_AT_ONCE:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def _row(entry: Entry) -> dict[str, Any]:
    recipe = entry.recipe
    return {
        "id": entry.id,
        "image": None if entry.png is None else {"bytes": entry.png, "path": f"{entry.key}.png"},
        "text": None if recipe is None else recipe.prompt,
        "seed": None if recipe is None else recipe.seed,
        "error": entry.error,
        "recipe": None if recipe is None else to_json(recipe),
    }


def _read_tar(path: Path) -> Iterator[tuple[str, bytes | None, str | None]]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() and member.size <= MAX_PART else None
            if file is None:
                raise ValueError(f"{path}: {member.name!a:.80} is not a picture or a record")
            yield _part(member.name, file.read())


def _read_folder(path: Path) -> Iterator[tuple[str, bytes | None, str | None]]:
    for file in sorted(path.iterdir(), key=lambda file: (file.stem, file.suffix != ".png")):
        yield _part(file.name, file.read_bytes())


def _part(name: str, data: bytes) -> tuple[str, bytes | None, str | None]:
    key, _, ending = name.partition(".")
    return (key, data, None) if ending == "png" else (key, None, data.decode(errors="replace"))


def _read_parquet(path: Path) -> Iterator[tuple[str, bytes | None, str | None]]:
    from ldm_core.jobs.tables import Parquet

    for values, _ in Parquet(path).read(0, None):
        image, recipe = values["image"], values["recipe"]
        record = json.dumps({"id": values["id"], "error": values["error"]})
        if recipe is not None:
            record = f'{record[:-1]}, "recipe": {recipe}}}'
        yield values["id"], None if image is None else image["bytes"], record


FORMATS = {
    "webdataset": Format(".tar", _write_tar, _read_tar),
    "parquet": Format(".parquet", _write_parquet, _read_parquet),
    "folder": Format("", _write_folder, _read_folder),
}
