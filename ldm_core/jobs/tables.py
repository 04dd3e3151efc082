"""Rows from a parquet file, with pyarrow, and from a folder that `datasets` has saved (`save_to_disk`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_core.support.json_text import parse_json
from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from ldm_core.jobs.sources import Place, Values

ROWS_AT_ONCE = 256  # kept in memory
MAX_STATE = 2**20  # bytes


@dataclass(frozen=True)
class Parquet:
    """The rows of a parquet file. Raises ValueError without pyarrow."""

    path: Path
    _file: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parquet = imported("pyarrow.parquet", "pyarrow")
        open_regular(self.path).close()
        try:
            opened = parquet.ParquetFile(self.path)
        except imported("pyarrow", "pyarrow").ArrowException as error:
            raise ValueError(f"{self.path}: not a parquet file ({_first_line(error)})") from None
        object.__setattr__(self, "_file", opened)

    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def read(self, start: int, place: Place | None, only: str | None = None) -> Iterator[tuple[Values, None]]:
        if only is not None and only not in self.columns():
            yield from (({}, None) for _ in range(start, self._file.metadata.num_rows))
            return
        groups: list[int] = []
        skipped = 0
        metadata, first = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if first + rows > start:
                skipped = skipped if groups else start - first
                groups.append(group)
            first += rows
        columns = None if only is None else [only]
        for batch in self._file.iter_batches(ROWS_AT_ONCE, groups, columns) if groups else ():
            if skipped >= len(batch):
                skipped -= len(batch)
                continue
            for values in batch.slice(skipped).to_pylist():
                yield values, None
            skipped = 0


@dataclass(frozen=True)
class DatasetFolder:
    """The rows of a folder that `datasets` has saved: one split. Raises ValueError without `datasets`."""

    path: Path
    _rows: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        datasets = imported("datasets", "datasets")
        if (self.path / "dataset_dict.json").is_file():
            with open_regular(self.path / "dataset_dict.json", MAX_STATE) as file:
                splits = parse_json(file.read().decode(), str(self.path)).get("splits")
            raise ValueError(f"{self.path} has several splits, {splits}: give the folder of one of them")
        self._require_own_files()
        try:
            rows = datasets.load_from_disk(str(self.path))
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            raise ValueError(f"{self.path}: cannot be read by datasets ({_first_line(error)})") from None
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):  # as bytes, which this package decodes
                rows = rows.cast_column(name, datasets.Image(decode=False))
        object.__setattr__(self, "_rows", rows)

    def _require_own_files(self) -> None:
        """Raise ValueError unless the folder names files of its own alone."""
        try:
            with open_regular(self.path / "state.json", MAX_STATE) as file:
                state = parse_json(file.read().decode(), f"{self.path}/state.json")
            names = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, TypeError, KeyError):
            raise ValueError(f"{self.path}: expected a folder that `datasets` has saved") from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError(f"{self.path}: state.json names files outside of the folder")

    def columns(self) -> list[str]:
        return list(self._rows.column_names)

    def read(self, start: int, place: Place | None, only: str | None = None) -> Iterator[tuple[Values, None]]:
        if only is not None and only not in self.columns():
            yield from (({}, None) for _ in range(start, len(self._rows)))
            return
        rows = self._rows if only is None else self._rows.select_columns([only])
        for first in range(start, len(rows), ROWS_AT_ONCE):
            columns = rows[first : first + ROWS_AT_ONCE]
            for values in zip(*columns.values()):
                yield dict(zip(columns, values)), None


def imported(module: str, package: str) -> Any:
    """A module of an optional package. Raises ValueError without it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise ValueError(f"this needs the package {package}: pip install {package}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
