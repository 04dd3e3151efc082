"""Jobs: shards that are written whole, resuming, and the check of the result."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.job_runs import Painted, contents, many, painted_job, tiny, write_rows
from support.kills import die, killed

from ldm_core.jobs import Options, Part, open_job, open_rows, run, verify
from ldm_core.jobs import job as job_module
from ldm_core.recipe import read_recipe
from ldm_core.recipe.files import SourceFile
from ldm_core.support import atomic_files
from ldm_core.training import TarShards

FORMATS = ["webdataset", "folder", "parquet"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(
        tmp_path / "rows.jsonl", [*many(9), {"id": "bad", "prompt": ""}, *({"id": "z", "prompt": "z"},)]
    )


def require(format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_writes_resumes_and_verifies(format: str, rows: Path, tmp_path: Path) -> None:
    require(format)
    job = painted_job(rows, tmp_path / "out", format=format)
    shards: list[Any] = []
    summary = run(job, on_shard=shards.append)
    assert (summary.shards, summary.kept, summary.drawn, summary.failed) == (3, 0, 10, 1)
    assert summary.reasons == ["bad: the prompt is empty; this model takes prompts"]
    assert [shard.path.exists() for shard in shards] == [True] * 3
    before = contents(tmp_path / "out")
    report = verify(tmp_path / "out")
    assert (report.rows, report.drawn, report.failed, report.problems) == (11, 10, 1, [])
    again = run(painted_job(rows, tmp_path / "out", format=format))
    assert (again.kept, again.drawn, again.failed) == (3, 10, 1)

    broken = shards[1].path / "00000004.png" if format == "folder" else shards[1].path
    broken.write_bytes(broken.read_bytes()[:-7])
    (tmp_path / "out" / "shard-000002.json").unlink()
    assert verify(tmp_path / "out").problems == [
        "shard-000001 (rows 5 to 8) is not whole",
        "shard-000002 (rows 9 to 11) is not whole",
    ]
    again = run(painted_job(rows, tmp_path / "out", format=format))
    assert (again.kept, again.drawn, again.failed) == (1, 10, 1)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("processes", [2, 4])
def test_parts_write_the_same_files_in_any_order(processes: int, rows: Path, tmp_path: Path) -> None:
    run(painted_job(rows, tmp_path / "one"))
    for k in reversed(range(processes)):
        run(painted_job(rows, tmp_path / "many"), Part(k, processes))
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_parts() -> None:
    assert sorted(k for i in range(6) for k in Part(i // 3, 2).within(Part(i % 3, 3)).shards(20)) == [
        *range(20)
    ]
    with pytest.raises(ValueError, match="expected part K/N"):
        Part(2, 2)


def test_shards_are_tar_files_that_training_reads(rows: Path, tmp_path: Path) -> None:
    run(painted_job(rows, tmp_path / "out"))
    data = TarShards([tmp_path / "out" / "shard-000002.tar"], 32)
    assert [data[k]["text"] for k in range(len(data))] == [("thing 8",), ("z",)]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        archive.extractall(tmp_path / "x", filter="data")
        assert {(member.mtime, member.uid) for member in archive} == {(0, 0)}
    record = json.loads((tmp_path / "x" / "00000001.json").read_text())
    recipe = read_recipe(tmp_path / "x" / "00000001.png")
    assert (record["id"], record["text"], record["seed"]) == ("r1", "thing 1", recipe.seed)
    assert record["recipe"]["steps"] == recipe.steps == 3
    listed = json.loads((tmp_path / "out" / "shard-000002.json").read_text())["rows"]
    assert [row["id"] for row in listed] == ["r8", "bad", "z"]
    assert listed[1]["error"].startswith("the prompt is empty")


def test_datasets_reads_the_parquet_files(rows: Path, tmp_path: Path) -> None:
    require("parquet")
    datasets = pytest.importorskip("datasets")
    run(painted_job(rows, tmp_path / "out", format="parquet"))
    files = [str(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    table = datasets.load_dataset(
        "parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert len(table) == 11
    assert table[0]["image"].size == (32, 32)
    assert {row["id"] for row in table} >= {"r0", "z", "bad"}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("moment", ["_sync", "replace"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_kill_loses_the_current_shard_alone(
    format: str, moment: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(format)
    run(painted_job(rows, tmp_path / "whole", format=format))
    job = painted_job(rows, tmp_path / "out", format=format)
    job.finish(0)
    with monkeypatch.context() as patch:
        patch.setattr(
            *((atomic_files, "_sync", die) if moment == "_sync" else (job_module, "source_file", die))
        )
        killed(lambda: job.finish(1) and None)
    report = verify(tmp_path / "out")
    assert [problem.split(" (")[0] for problem in report.problems] == ["shard-000001", "shard-000002"]
    summary = run(painted_job(rows, tmp_path / "out", format=format))
    assert (summary.kept, summary.drawn) == (1, 10)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_loses_nothing(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = painted_job(rows, tmp_path / "out")
    job.finish(0)
    add, left = tarfile.TarFile.addfile, [3]

    def full(self: Any, member: Any, file: Any = None) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, member, file)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            run(job)
    assert str(tmp_path / "out" / "shard-000001.tar") in str(error.value)
    assert sorted(os.listdir(tmp_path / "out")) == ["job.json", "shard-000000.json", "shard-000000.tar"]
    assert run(job).kept == 1


def test_failed_rows_are_tried_again_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*many(4), {"id": "x", "prompt": "break"}])
    job = painted_job(rows, tmp_path / "out")
    assert run(job).failed == 1
    sample = Painted.__mro__[1]._sample
    monkeypatch.setattr(Painted, "_sample", sample)
    assert (run(job).kept, run(job).failed) == (2, 1)
    again = run(job, retry_failed=True)
    assert (again.kept, again.drawn, again.failed) == (1, 5, 0)


def test_the_folder_of_another_job_is_refused(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(painted_job(rows, out))
    before = contents(out)
    other = write_rows(tmp_path / "other.jsonl", many(3))
    models = [SourceFile("m.ckpt", letter * 64) for letter in "ab"]
    run(painted_job(rows, tmp_path / "named", model=models[0]))
    for expected, make in (
        ("whose seed is 0, not 1", lambda: painted_job(rows, out, seed=1)),
        ("whose shard_size is 4, not 5", lambda: painted_job(rows, out, shard_size=5)),
        ("whose format is 'webdataset', not 'folder'", lambda: painted_job(rows, out, format="folder")),
        ("whose rows.sha256 is ", lambda: painted_job(other, out)),
        ("whose recipe.width is 32, not 48", lambda: painted_job(rows, out, width=48)),
        (
            "was begun with another model: 'm.ckpt' (sha256 aaaaaaaaaa…), not 'm.ckpt' (sha256 bbbbbbbbbb…)",
            lambda: painted_job(rows, tmp_path / "named", model=models[1]),
        ),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert expected in str(error.value)
    assert contents(out) == before
    run(painted_job(rows.rename(tmp_path / "renamed.jsonl"), out))


def test_a_folder_of_other_files_is_refused(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"has other files \(thesis.tex\)"):
        painted_job(rows, tmp_path / "out")
    with pytest.raises(ValueError, match="expected a folder, got a file"):
        painted_job(rows, tmp_path / "out" / "thesis.tex")
    with pytest.raises(ValueError, match=r"it has no job\.json"):
        verify(tmp_path / "out")


def test_missing_columns_are_an_error_before_anything_is_written(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"caption": "a"}])
    with pytest.raises(ValueError, match="needs a column 'prompt'; the columns are caption"):
        painted_job(rows, tmp_path / "out")
    doubled = write_rows(tmp_path / "doubled.jsonl", [*many(2), *many(1)])
    with pytest.raises(ValueError, match="doubled ids"):
        painted_job(doubled, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_verify_finds_what_is_doubled_or_foreign(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(painted_job(rows, out))
    for name in ("shard-000000.tar", "shard-000001.tar"):
        (out / name.replace("-0", "-9")).write_bytes((out / name).read_bytes())
    assert verify(out).problems == [f"shard-90000{k}.tar is not a shard of this job" for k in (0, 1)]


def test_verify_looks_into_the_files(rows: Path, tmp_path: Path) -> None:
    """Even where the checksum of the file is right."""
    out = tmp_path / "out"
    run(painted_job(rows, out))
    path, record = out / "shard-000000.tar", out / "shard-000000.json"
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("00000000.json")
        data = b'{"id": "r0"}'
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    text = json.loads(record.read_text())
    from ldm_core.recipe.files import file_sha256

    text |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    record.write_text(json.dumps(text))
    (problem,) = verify(out).problems
    assert "doubled" in problem


@pytest.mark.parametrize("format", FORMATS)
def test_verify_draws_again(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(format)
    rows = write_rows(tmp_path / "rows.jsonl", many(5))
    job = painted_job(rows, tmp_path / "out", format=format)
    run(job)
    report = verify(tmp_path / "out", redraw=4, draw=job.draw)
    assert (report.problems, report.redrawn, report.difference) == ([], 4, 0)
    report = verify(tmp_path / "out", redraw=4, draw=job.draw, rows=open_rows(rows))
    assert (report.problems, report.redrawn) == ([], 4)
    monkeypatch.setattr(Painted, "_sample", Painted.__mro__[1]._sample)
    report = verify(tmp_path / "out", redraw=1, draw=job.draw)
    assert "levels when it is drawn again" in report.problems[0]
    other = Painted(tiny(), Options(model=SourceFile("x", "b" * 64)))
    with pytest.raises(ValueError, match="expected the model ''"):
        verify(tmp_path / "out", draw=other, redraw=1)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1, "settings": {}, "rows": 1, "ids": "", "places": []}', "\0"]
)
def test_a_damaged_job_file_is_one_line(text: str, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json").write_text(text)
    for action in (lambda: verify(tmp_path / "out"), lambda: painted_job(rows, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"job\.json"):
            action()


def test_two_processes_may_begin_a_job_at_once(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_rows(rows)
    scan = type(first).scan

    def slow(self: Any, size: int) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(type(first), "scan", scan)
            run(painted_job(rows, tmp_path / "out"))  # the other one is faster
        return scan(self, size)

    monkeypatch.setattr(type(first), "scan", slow)
    draw = Painted(tiny(), Options(steps=2, batch_size=3))
    assert run(open_job(first, draw, tmp_path / "out", shard_size=4)).kept == 3
