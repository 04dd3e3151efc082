"""examples/gpu/first_day.py: its dry run measures everything; after a kill it goes on where it was."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ldm_core.kernels import tiles as table
from ldm_core.kernels.tiles import Tile

FOLDER = Path(__file__).parents[2] / "examples" / "gpu"
SCRIPTS = sorted(FOLDER.glob("*.py"))
STAGES = ["machine", "tests", "attention", "tiles", "unet", "decoder", "picture"]
# A bare machine has none of these.
ABSENT = [
    "diffusers",
    "transformers",
    "tokenizers",
    "ftfy",
    "safetensors",
    "yaml",
    "matplotlib",
    "scipy",
    "peft",
]
SKIPPED = {
    "PyTorch has no such kernel for this size on this device",
    "ldm_core.capture needs a CUDA device",
    "ldm_core.compile is not available in this version",
    "interpreted kernels would take minutes for a network",
}
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its processes are Linux's")


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name: str) -> ModuleType:
    return __import__(name)


def contents(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole dry run, without the packages that a bare machine lacks."""
    pytest.importorskip("triton")
    absent, out = tmp_path_factory.mktemp("absent"), tmp_path_factory.mktemp("out") / "first"
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is absent', name='{name}')")
    path = os.pathsep.join([str(absent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "first_day.py"), str(out), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.mark.slow  # a whole dry run
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_measured(finished: Path, stage: str) -> None:
    found = contents(finished / f"{stage}.json")
    assert (found["stage"], found["state"], found["running"]) == (stage, "done", "")
    rows = found["rows"]
    assert len({row["name"] for row in rows}) == len(rows) > 0
    assert [row for row in rows if "error" in row] == []
    assert {row["skipped"] for row in rows if "skipped" in row} <= SKIPPED
    for row in rows:
        assert row["took"] >= 0
        assert all(row[key] > 0 for key in ("seconds", "us", "tflops", "it_per_s") if key in row)


@pytest.mark.slow  # a whole dry run
def test_what_the_stages_measure(finished: Path) -> None:
    rows = {stage: contents(finished / f"{stage}.json")["rows"] for stage in STAGES}
    assert rows["machine"][0]["versions"]["torch"] == torch.__version__
    assert rows["machine"][1]["tb_per_s"] > 0
    assert rows["tests"][0]["exit_code"] == 0
    assert list(rows["tests"][0]["outcomes"]) == ["skipped"], "all need a GPU, and could be collected"
    assert rows["tests"][0]["outcomes"]["skipped"] >= 25

    sizes = {(row["size"], row["backward"]) for row in rows["attention"] if row.get("kernel") == "triton"}
    assert sizes == {("self 16", False), ("cross 16", False), ("self 16", True)}
    assert all(row["difference"] < 1e-5 for row in rows["attention"] if "us" in row)
    assert [row["tile"] for row in rows["tiles"]] == 2 * [None, [16, 16, 4, 1, None], [16, 32, 4, 1, None]]

    ways = ("eager", "graph", "captured", "compiled", "compiled, captured")
    expected = {f"float32, batch 1, {kind}, {way}" for kind in ("plain", "triton") for way in ways}
    assert {row["name"] for row in rows["unet"]} == expected
    eager = rows["unet"][0]
    assert eager["kernels"] > 100
    assert eager["largest_kernels"][0][2] <= eager["kernel_seconds"]
    for stage in ("unet", "decoder", "picture"):
        assert any("seconds" in row for row in rows[stage])


@pytest.mark.slow  # a whole dry run
def test_the_summary_has_goals_and_what_is_left_out(finished: Path) -> None:
    text = (finished / "summary.md").read_text(encoding="utf-8")
    headings = re.findall(r"^###? (.*)", text, re.MULTILINE)
    names = ["Measured", "Goals", "`pytest -m gpu`", "Attention", "Tiles", "A step of the U-Net", "Decoding"]
    assert headings == [*names, "Whole pictures", "Without a figure"]
    assert "numbers mean nothing" in text
    assert "| SD1 U-Net, 512×512, one picture with guidance | 104.6, then 200 it/s | " in text
    assert "| a 50-step picture, 512×512, with guidance | 570, then 300 ms | " in text
    assert re.search(r"^    40: Tile\(16, (16|32), 4, 1\),$", text, re.MULTILINE)
    assert "| unet | float32, batch 1, plain, captured | ldm_core.capture needs a CUDA device |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for above, line in itertools.pairwise(tables):
        if line.startswith("| ---"):
            assert line.count("|") == above.count("|")


@pytest.mark.slow  # a whole dry run
def test_the_same_command_again_measures_nothing_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # so that what `main` sets ends with this test
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {path.name: path.read_bytes() for path in finished.glob("*.json")}
    module("first_day").main([str(finished), "--dry-run"])
    assert {path.name: path.read_bytes() for path in finished.glob("*.json")} == before
    assert "### Goals" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a dry run: name another folder"):
        module("first_day").main([str(finished)])


# Stages of two rows; the second does as its test wants. `folder` is where they leave notes.


def two_rows(folder: Path, second: Callable[[], Any]) -> Any:
    def first() -> dict[str, Any]:
        with (folder / "measured").open("a") as file:
            file.write("first ")
        return {"seconds": 1.0}

    def measure(report: Any, plan: Any) -> None:
        report.row("first", first)
        report.row("second", lambda: second() or {"seconds": 2.0})
        report.row("third", lambda: {"seconds": 3.0})

    return module("first_day").Stage("fake", measure, 60)


def sleep_once(folder: Path) -> None:
    """Sleep for a minute the first time, with the process's number in a file."""
    if not (folder / "pid").exists():
        (folder / "pid.partial").write_text(str(os.getpid()))
        (folder / "pid.partial").rename(folder / "pid")
        time.sleep(60)


def run_fake(folder: Path, second: Callable[[], Any], seconds: float) -> dict[str, Any]:
    plan = module("first_day_plan").DRY
    module("first_day").run_stage(two_rows(folder, second), folder, plan, seconds)
    return contents(folder / "fake.json")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow  # waits for a second, twice
def test_a_stage_that_is_out_of_time_goes_on_later(tmp_path: Path) -> None:
    found = run_fake(tmp_path, lambda: sleep_once(tmp_path), 1.0)
    assert (found["state"], [row["name"] for row in found["rows"]]) == ("out of time", ["first"])
    assert 1 <= found["seconds"] < 10
    assert not is_running(int((tmp_path / "pid").read_text()))
    found = run_fake(tmp_path, lambda: sleep_once(tmp_path), 30.0)
    assert (found["state"], [row["seconds"] for row in found["rows"]]) == ("done", [1, 2, 3])
    assert (tmp_path / "measured").read_text() == "first "


def test_a_kill_loses_the_running_row_alone(tmp_path: Path) -> None:
    whole = multiprocessing.get_context("fork").Process(
        target=run_fake, args=(tmp_path, lambda: sleep_once(tmp_path), 60.0)
    )
    whole.start()
    wait_until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    os.kill(whole.pid or 0, signal.SIGKILL)
    whole.join()
    wait_until(lambda: not is_running(pid))  # nothing is left on the GPU
    found = contents(tmp_path / "fake.json")
    assert (found["state"], found["running"]) == ("running", "second")
    found = run_fake(tmp_path, lambda: sleep_once(tmp_path), 30.0)
    assert (found["state"], [row["seconds"] for row in found["rows"]]) == ("done", [1, 2, 3])
    assert (tmp_path / "measured").read_text() == "first "


def test_a_crash_or_an_exception_costs_its_row(tmp_path: Path) -> None:
    found = run_fake(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL), 30.0)
    assert found["state"] == "done"
    assert [row.get("error") for row in found["rows"]] == [None, "its process ended with exit code -9", None]

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    (tmp_path / "other").mkdir()
    found = run_fake(tmp_path / "other", fail, 30.0)
    assert found["rows"][1]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert found["rows"][2]["seconds"] == 3


def test_a_lost_context_ends_the_process_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("stage_report"), "_context_is_lost", lambda: True)

    def fail() -> None:
        raise RuntimeError("CUDA error")

    found = run_fake(tmp_path, fail, 30.0)
    assert (found["state"], found["rows"][2]["seconds"]) == ("done", 3)
    assert (tmp_path / "measured").read_text() == "first "


@pytest.mark.slow  # a process of its own
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_ends_at_once(tmp_path: Path) -> None:
    """In processes that begin anew, as CUDA needs, and a dry run does not."""
    command = [sys.executable, str(FOLDER / "first_day.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "error: PyTorch finds no CUDA device; --dry-run needs none"
    assert done.returncode == 1
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["machine.json"]


def rows_of_tiles() -> Iterator[dict[str, Any]]:
    """Head size 160 at two sizes: the first tile is best at one of them, the second for both together."""
    first, second, broken = Tile(64, 32, 4, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)
    for size, calls, times in (("a", 5, (2.0, 3.0, 1.0)), ("b", 1, (9.0, 1.0, None))):
        yield {"name": size, "size": size, "d": 160, "n": 2048, "calls": calls, "tile": None, "us": 1.0}
        for tile, us in zip((first, second, broken), times):
            known = {"name": f"{size} {tile}", "size": size, "d": 160, "n": 2048, "calls": calls}
            values = [tile.queries, tile.keys, tile.warps, tile.stages, None]
            yield known | ({"error": "out of shared memory"} if us is None else {"tile": values, "us": us})


def test_the_best_tiles_replace_those_of_the_table() -> None:
    stage = module("attention_stages")
    assert stage.best_tiles([*rows_of_tiles()], "8.9") == {"FORWARD_SMALLER": {160: Tile(128, 64, 8, 3)}}
    best = stage.best_tiles([*rows_of_tiles()], "9.0")["FORWARD_HOPPER"]
    best |= {40: Tile(128, 64, 8, 3, registers=128), 80: Tile(64, 64, 4, 3)}
    before = Path(table.__file__).read_text(encoding="utf-8")
    for name in ("FORWARD", "FORWARD_SMALLER", "FORWARD_HOPPER"):
        namespace: dict[str, Any] = {"__name__": "ldm_core.kernels.tiles"}
        once = stage.rewritten(before, name, best)
        exec(compile(once, "tiles.py", "exec"), namespace)
        expected = {d: repr(tile) for d, tile in (getattr(table, name) | best).items()}
        assert {d: repr(tile) for d, tile in namespace[name].items()} == expected
        assert stage.rewritten(once, name, best) == once
        assert once.replace(" ", "").count(":Tile(") <= before.replace(" ", "").count(":Tile(") + len(best)
    one_line = "A = 1\nFORWARD_SHORT: Table = {80: Tile(64, 32, 4, 3)}\nB = 2\n"
    rows = ["40: Tile(128, 64, 8, 3, registers=128)", "80: Tile(64, 64, 4, 3)", "160: Tile(128, 64, 8, 3)"]
    block = "".join(f"    {row},\n" for row in rows)
    expected_text = f"A = 1\nFORWARD_SHORT: Table = {{\n{block}}}\nB = 2\n"
    assert stage.rewritten(one_line, "FORWARD_SHORT", best) == expected_text
    with pytest.raises(ValueError, match="expected a table OTHER of tiles, found none"):
        stage.rewritten(before, "OTHER", best)


@pytest.mark.parametrize("chip", [80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize("queries", [64, 4096])
def test_a_tile_is_written_where_the_kernel_looks_for_it(chip: int, queries: int) -> None:
    name = module("attention_stages").table_of(f"{chip // 10}.{chip % 10}", queries)
    tile = table.forward_tile(64, torch.float16, chip, queries=queries)
    assert tile == replace(table.tile_for(getattr(table, name), 64), registers=None)


def test_a_wrong_result_is_not_timed() -> None:
    stages, plan = module("attention_stages"), module("first_day_plan").DRY
    size = replace(plan.attention[0], n=32, m=32)
    with pytest.raises(ArithmeticError, match="wrong result, off by 1 of the largest value"):
        stages.measured(size, "float32", lambda q, k, v: torch.zeros_like(q), plan)


def test_a_tile_that_the_kernel_does_not_take_is_not_credited(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    stages, plan = module("attention_stages"), module("first_day_plan").DRY
    monkeypatch.setattr(stages, "triton_attention", stages.math_attention)
    assert stages._tried(plan.attention[0], "float32", None, False, plan)["us"] > 0
    with pytest.raises(module("stage_report").NotHere, match="takes this size's tile from somewhere else"):
        stages._tried(plan.attention[0], "float32", plan.tiles[0], False, plan)


def test_outcomes_are_read_from_a_log_that_was_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "tests.log"
    lines = [
        "tests/attention/test_gpu.py::test_a[float16] PASSED                    [ 10%]",
        "tests/attention/test_gpu.py::test_a[4096-77-40-torch.float16] FAILED   [ 20%]",
        "tests/attention/test_gpu.py::test_b SKIPPED (needs two)                [ 30%]",
        "tests/attention/test_gpu.py::test_c ",
    ]
    log.write_text("\n".join(lines))
    found = module("machine_stages").outcomes(log)
    assert found["outcomes"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["bad"] == ["tests/attention/test_gpu.py::test_a[4096-77-40-torch.float16]"]


def test_goals_are_judged_in_their_direction() -> None:
    summary = module("first_day_summary")
    assert [summary.STEP.verdict(v) for v in (104.6, 104.7, 201)] == ["not reached", "past 104.6", "past 200"]
    assert [summary.PICTURE.verdict(v) for v in (571, 569, 299)] == ["not reached", "past 570", "past 300"]


def test_predictions_that_were_missed_are_marked(tmp_path: Path) -> None:
    def step(way: str, ms: float, predicted: tuple[float, float]) -> dict[str, Any]:
        known = {"dtype": "float16", "batch": 1, "kind": "plain", "way": way, "peak_gb": 2.25}
        times = {"seconds": ms / 1e3, "it_per_s": 1e3 / ms, "predicted_ms": predicted}
        return {"name": f"float16, batch 1, plain, {way}", **known, **times, "predicted_kernels": None}

    slow = step("eager", 21, (10, 15)) | {"kernels": 1004, "predicted_kernels": 980}
    rows = [slow, step("graph", 4.0, (6, 6.5)), step("captured", 6.2, (6, 6.5))]
    stage = {"stage": "unet", "state": "out of time", "seconds": 9, "running": "", "rows": rows}
    (tmp_path / "unet.json").write_text(json.dumps(stage))
    text = module("first_day_summary").write_summary(tmp_path)
    assert "| float16, batch 1, plain, eager | 21.00 | 10–15 (**missed**) | 1004 | 980 |\n" in text
    assert "| float16, batch 1, plain, graph | 4.00 | 6–6.5 (**missed**) |  |  |\n" in text
    assert "| float16, batch 1, plain, captured | 6.20 | 6–6.5 |  |  |\n" in text
    assert "| 104.6, then 200 it/s | 250 | past 200 | float16, batch 1, plain, graph |\n" in text
    assert "| float16 | 1 | plain | 47.62 | 250 | 161.3 | 2.2 |\n" in text
    assert "| unet | all that is not above | out of time |\n" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_is_short_and_says_what_it_does(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) < 250
