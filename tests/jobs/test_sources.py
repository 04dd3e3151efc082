"""Files of rows: read from any shard on, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.job_runs import many, write_rows

from ldm_core.jobs import open_rows
from ldm_core.jobs.sources import Rows


def shards_of(rows: Rows, size: int) -> list[list[dict[str, Any]]]:
    scan = rows.scan(size)
    shards = [rows.read(k * size, size, place) for k, place in enumerate(scan.places)]
    assert sum(map(len, shards)) == scan.count
    return shards


def flat(shards: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for shard in shards for row in shard]


TEXT = "\ufeffa cat\n\n# a comment\r\n  \\# not one \nlast line"
CSV = '\ufeffid,prompt,steps\nx,"two\nlines, ""quoted""",3\n\ny,b,\n7,c,4\n'


@pytest.mark.parametrize("size", [1, 2, 5])
def test_text_files(size: int, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert flat(shards_of(open_rows(path), size)) == [
        {"id": "1", "prompt": "a cat"},
        {"id": "4", "prompt": "# not one"},
        {"id": "5", "prompt": "last line"},
    ]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_tables(ending: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / f"p{ending}"
    path.write_text(CSV if ending == ".csv" else CSV.replace(",", "\t"), encoding="utf-8")
    comma = "," if ending == ".csv" else "\t"
    rows = open_rows(path)
    assert rows.names() == ["id", "prompt", "steps"]
    assert flat(shards_of(rows, size)) == [
        {"id": "x", "prompt": f'two\nlines{comma} "quoted"', "steps": "3"},
        {"id": "y", "prompt": "b", "steps": ""},
        {"id": "7", "prompt": "c", "steps": "4"},
    ]


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{"caption": "a"}, {"caption": "b"}, {"caption": "c"}])
    rows = open_rows(path, {"prompt": "caption"})
    assert rows.names() == ["prompt"]
    assert flat(shards_of(rows, 2)) == [{"id": str(k + 1), "prompt": "abc"[k]} for k in range(3)]
    with pytest.raises(ValueError, match="has no column 'title'; it has caption"):
        open_rows(path, {"prompt": "title"}).names()
    with pytest.raises(ValueError, match="as a column, not 'colour'"):
        open_rows(path, {"colour": "caption"}).names()


def test_doubled_ids_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [*many(5), {"id": "r1"}, {"id": 9}, {"id": "9"}])
    with pytest.raises(ValueError) as error:
        open_rows(path).scan(3)
    assert str(error.value) == f"{path}: doubled ids: 'r1' of rows 2 and 6; '9' of rows 7 and 8"


def scan(path: Path) -> None:
    rows = open_rows(path)
    rows.names()
    rows.scan(2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "id,prompt\na,b\nc\n", "line 3 has 1 values, the first line 2 columns"),
        ("p.csv", 'id,prompt\na,"b\n', "line 2: unexpected end of data"),
        ("p.csv", "id,id\n", "a column occurs twice"),
        ("p.csv", "id,prompt\n,b\n", "row 1: an id must be text of 1..200 letters or a whole number, not ''"),
        ("p.jsonl", '{"a": 1}\n[1]\n', "line 2: expected an object, not [1]"),
        ("p.jsonl", "{\n", "line 1: not valid JSON"),
        ("p.jsonl", "\n", "there are no rows"),
        ("p.txt", "# nothing", "there are no rows"),
        ("p.txt", "a\n" + "x" * (2**20 + 1), "line 2 has more than 1,048,576 bytes"),
        ("p.txt", b"a\n\xff\n", "line 2 is not UTF-8 text"),
        ("p.doc", "", "expected one of .txt, .csv, .tsv, .jsonl, .parquet, or a folder"),
    ],
)
def test_bad_files_in_one_line(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        scan(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200), ending=st.sampled_from([".txt", ".csv", ".jsonl"]), size=st.integers(1, 4)
)
def test_any_bytes_are_read_alike_from_every_shard(
    data: bytes, ending: str, size: int, tmp_path: Path
) -> None:
    path = tmp_path / f"p{ending}"
    path.write_bytes(data)
    try:
        rows = open_rows(path)
        scan = rows.scan(size)
    except ValueError:
        return
    assert flat(shards_of(rows, size)) == rows.read(0, scan.count, None)


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "p.parquet"
    rows = [{**row, "seed": None if k % 3 else k} for k, row in enumerate(many(11))]
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=4)
    assert flat(shards_of(open_rows(path), 3)) == rows
    parquet.write_table(arrow.Table.from_pylist([{"prompt": "a"}] * 5), path)
    assert [row["id"] for row in flat(shards_of(open_rows(path), 2))] == list("12345")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a parquet file"):
        open_rows(path)


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = many(7)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    assert flat(shards_of(open_rows(tmp_path / "d"), 3)) == rows
    state = tmp_path / "d" / "state.json"
    state.write_text(state.read_text().replace("data-00000", "../data-00000"))
    with pytest.raises(ValueError, match="names files outside of the folder"):
        open_rows(tmp_path / "d")
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match="expected a folder that `datasets` has saved"):
        open_rows(tmp_path / "e")
