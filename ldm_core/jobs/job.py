"""A job: its shards, each of which is finished by one call, in any process and any order.

A shard is a fixed range of rows. Its file is written under a temporary name and renamed; its JSON, which
follows, marks it as finished. A process that is killed therefore loses the shard that it was drawing, and a
shard that is drawn twice is written twice with the same pictures.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_core.jobs.draw import Draw
from ldm_core.jobs.plan import SHARD_SIZE, Plan, open_plan, settings_of, shard_name
from ldm_core.jobs.shards import FORMATS, Entry, entry_of
from ldm_core.jobs.sources import Rows
from ldm_core.recipe.files import source_file
from ldm_core.support.atomic_files import write_whole
from ldm_core.support.json_text import parse_json
from ldm_core.support.regular_file import open_regular

MAX_RECORD = 2**28  # bytes of a shard's JSON
REASONS = 3  # of failed rows that a result keeps


@dataclass(frozen=True)
class Shard:
    """A finished shard: its file, and the numbers of its pictures and failed rows.

    kept: whether it was finished before. reasons: the first failed rows and why they failed.
    """

    number: int
    path: Path
    drawn: int
    failed: int
    kept: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """Rows that are drawn into an output folder. `open_job` makes one."""

    output: Path
    rows: Rows
    draw: Draw
    plan: Plan

    def finish(
        self,
        number: int,
        *,
        retry_failed: bool = False,
        on_row: Callable[[], object] | None = None,
    ) -> Shard:
        """Draw and write a shard, unless it is there with the right checksum.

        retry_failed: draw it again if any of its rows failed. on_row: called after each row.

        Raises OSError if it cannot be written, and the errors of `Draw`; then nothing of it is written.
        """
        path = self.plan.path_of(self.output, number)
        rows = read_record(self.output, self.plan, number)
        if rows is not None and not (retry_failed and any("error" in row for row in rows)):
            return _shard(number, path, rows, kept=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        numbers = self.plan.rows_of(number)
        values = self.rows.read(numbers.start, len(numbers), self.plan.place_of(number))
        if len(values) < len(numbers):
            raise ValueError(f"{self.rows.source.path} has changed: it has fewer rows than before")
        summary: dict[int, dict[str, Any]] = {}

        def entries() -> Iterator[Entry]:
            for drawn in self.draw.stream(values):
                entry = entry_of(drawn, numbers.start)
                result = {"error": entry.error} if entry.png is None else {"sha256": entry.checksum}
                summary[entry.number] = {"id": entry.id, **result}
                yield entry
                if on_row is not None:
                    on_row()

        FORMATS[self.plan.format].write(path, entries())
        rows = [summary[k] for k in numbers]
        file = source_file(path)
        record = {
            "job": self.plan.fingerprint,
            "shard": number,
            "file": file.name,
            "bytes": _bytes(path),
            "sha256": file.sha256,
            "rows": rows,
            "recipe": self.plan.settings["recipe"],
        }
        write_whole(_record_path(self.output, number), lambda target: target.write_text(json.dumps(record)))
        return _shard(number, path, rows)


def open_job(
    rows: Rows,
    draw: Draw,
    output: str | os.PathLike[str],
    *,
    format: str = "webdataset",
    shard_size: int = SHARD_SIZE,
) -> Job:
    """A new job, or the one that the output folder belongs to.

    format: "webdataset", "parquet" or "folder". shard_size: rows of a shard.

    Raises ValueError for doubled ids and missing columns, for a folder of another job or of other files, and
    if the model, an option or the rows differ from those that the job was begun with.
    """
    output = Path(output)
    settings = settings_of(rows, draw, format, shard_size)
    return Job(output, rows, draw, open_plan(output, settings, rows))


def read_record(output: Path, plan: Plan, number: int) -> list[dict[str, Any]] | None:
    """The rows of a finished shard, as its JSON lists them; None if it is missing, damaged or of another job.

    The shard's checksum is computed.
    """
    path = plan.path_of(output, number)
    try:
        with open_regular(_record_path(output, number), MAX_RECORD) as file:
            record = parse_json(file.read().decode(), "the shard's JSON")
        wanted = (plan.fingerprint, number, path.name, len(plan.rows_of(number)))
        if (record["job"], record["shard"], record["file"], len(record["rows"])) != wanted:
            return None
        if record["bytes"] != _bytes(path) or record["sha256"] != source_file(path).sha256:
            return None
        rows = [{name: str(value) for name, value in row.items()} for row in record["rows"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return rows if all("id" in row and ("error" in row) != ("sha256" in row) for row in rows) else None


def _record_path(output: Path, number: int) -> Path:
    return output / f"{shard_name(number)}.json"


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.iterdir())
    return path.stat().st_size


def _shard(number: int, path: Path, rows: Iterable[dict[str, Any]], *, kept: bool = False) -> Shard:
    rows = list(rows)
    failed = [f"{row['id']}: {row['error']}" for row in rows if "error" in row]
    return Shard(number, path, len(rows) - len(failed), len(failed), kept, tuple(failed[:REASONS]))
