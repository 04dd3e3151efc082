"""`draw` and `verify` on the command line."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from support import cli_runs
from support.cli_runs import Result, Run, run
from support.job_runs import contents, many, tiny, write_rows

import ldm_core
from ldm_core.cli import jobs
from ldm_core.jobs.running import torchrun_part

__all__ = ["run"]

SMALL = ("--steps", "1", "--device", "cpu", "--shard-size", "2", "-o", "out")


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    ldm_core.save(tiny(), path)
    cli_runs.zoo[str(path)] = tiny()
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "rows.jsonl", [*many(2), {"id": "x", "prompt": "", "other": 3}]))


def messages(result: Result) -> list[str]:
    return [line.removeprefix("ldm-core: ") for line in result.err]


def test_draw_resumes_and_verify_draws_again(run: Run, model: str, rows: str) -> None:
    command = ("draw", rows, "--model", model, *SMALL)
    result = run(*command)
    assert (result.status, result.out) == (0, ["out/shard-000000.tar", "out/shard-000001.tar"])
    assert messages(result) == [
        "3 rows in 2 shards (0 of them finished before): 2 drawn, 1 failed",
        "failed: row x: the prompt is empty; this model takes prompts",
    ]
    before = contents(Path("out"))
    os.unlink("out/shard-000000.json")
    assert run(*command, "-q") == Result(0, ["out/shard-000000.tar"], [])
    assert contents(Path("out")) == before
    result = run("verify", "out", "--redraw", "2", "--model", model, "--device", "cpu")
    assert (result.status, result.out) == (1, [])
    assert messages(result) == [
        "row 'x' failed: the prompt is empty; this model takes prompts",
        "3 rows: 2 drawn, 1 failed, 0 problems; 2 drawn again, differing by at most 0 of 255 levels",
    ]


def test_parts_and_torchrun_divide_the_shards(
    run: Run, model: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("draw", rows, "--model", model, *SMALL, "-q")
    assert run(*command, "--part", "1/2").out == ["out/shard-000001.tar"]
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    monkeypatch.setattr(jobs, "torchrun_part", lambda: torchrun_part(environment))
    assert run(*command).out == ["out/shard-000000.tar"]
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE: expected part"):
        torchrun_part({"RANK": "2", "WORLD_SIZE": "2"})


def test_bad_input_in_one_line(run: Run, model: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("captions.csv").write_text("caption\na\n")
    Path("full").mkdir()
    Path("full/x").touch()
    for arguments, expected in (
        (["draw", "none.csv", *SMALL], "none.csv: No such file or directory"),
        (
            ["draw", "captions.csv", *SMALL],
            "captions.csv: this model takes prompts, which needs a column 'prompt'",
        ),
        (["draw", rows, *SMALL, "--part", "2/2"], "argument --part: expected K/N with K in 0..N-1"),
        (["draw", rows, *SMALL, "--column", "prompt"], "argument --column: expected NAME=COLUMN"),
        (["draw", rows, *SMALL, "--size", "33"], "height must be a positive multiple of 4 pixels, not 33"),
        (["draw", rows, *SMALL, "--images", "none"], "--images none: expected a folder"),
        (["draw", rows, *SMALL[:-1], "full"], "full has other files (x)"),
        (["draw", rows, *SMALL[:-1], "no/no"], "no/no: No such file or directory"),
        (["verify", "full"], "full is not the output folder of a job: it has no job.json"),
    ):
        result = run(*arguments, *(["--model", model] if arguments[0] == "draw" else []))
        assert (result.status, result.out) == (2, [])
        assert len(result.err) == 1
        assert expected in result.err[0]
    assert not os.path.exists("out")
    draw = ("draw", rows, *SMALL, "--model", model)
    run(*draw)
    (line,) = run(*draw, "--seed", "3").err
    assert line == "ldm-core: error: out belongs to another job, whose seed is 0, not 3"
    settings = json.loads(Path("out/job.json").read_text())
    settings["settings"]["recipe"]["model"]["sha256"] = "c" * 64
    Path("out/job.json").write_text(json.dumps(settings))
    (line,) = run(*draw).err
    assert "out was begun with another model: 'model.safetensors' (sha256 cccccccccc…), not" in line
    pytest.importorskip("ray")
    (line,) = run(*draw, "--ray", f"127.0.0.1:{port}").err
    assert line.startswith(f"ldm-core: error: no Ray cluster answers at '127.0.0.1:{port}'")
    (line,) = run(*draw, "--ray", "--part", "0/2").err
    assert "give one of --part and --ray" in line


def test_without_ray_the_package_is_named(
    run: Run, model: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    (line,) = run("draw", rows, *SMALL, "--model", model, "--ray").err
    assert line == "ldm-core: error: this needs the package 'ray[data]': pip install 'ray[data]'"


def test_an_interruption_keeps_finished_shards(
    run: Run, model: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(shard: object) -> None:
        raise KeyboardInterrupt

    command = ("draw", rows, "--model", model, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_print_shard", interrupt)
        result = run(*command)
    assert result.status == 130
    assert messages(result) == ["interrupted; finished shards are kept, and the same command resumes"]
    assert run(*command).out == ["out/shard-000001.tar"]
