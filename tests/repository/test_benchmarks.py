"""Every benchmark runs, at its smallest, and leaves numbers that can be numbers; and the report of them."""

from __future__ import annotations

import json
import math
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
OURS = ["ldm_core", "ldm_core, optimized"]
CONVOLUTIONS = ["direct", "direct, channels-last", "winograd", "winograd, prepared", "packed"]
# Benchmark -> how many cases it has in its quick form for one type, and their candidates.
NETWORKS = {
    "unet_step": (1, [*OURS, "diffusers"]),
    "autoencoder": (2, ["ldm_core", "diffusers"]),
    "text_encoder": (1, [*OURS, "transformers"]),
    "end_to_end": (1, [*OURS, "diffusers"]),
}
OPERATORS = {
    "attention": (5, ["math", "sdpa", "chunked", "auto"]),
    "convolution": (9, CONVOLUTIONS),
    "linear": (7, ["blas", "onednn", "auto", "packed"]),
}
TOKENIZER = {"tokenizer": (4, ["ldm_core", "tokenizers (Rust)"])}
LOADING = {"loading": (1, ["ldm_core", "diffusers", "plain"])}
COUNTED = {"attention", "convolution", "linear", "unet_step", "autoencoder", "text_encoder"}


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name: str) -> ModuleType:
    return __import__(name)


def run(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = FOLDER / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")


def quick(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    options = module("everything").QUICK[name].split()
    options += [
        "--rounds",
        "1",
        "--matmul",
        "64",
        "--threads",
        "1",
        "--dtype",
        "float32",
        "--json",
        str(path),
    ]
    run(name, [*options, *more], monkeypatch)
    return json.loads(path.read_text(encoding="utf-8"))


def check(found: dict[str, Any], name: str, count: int, candidates: list[str]) -> None:
    assert found["benchmark"] == name
    assert found["machine"]["threads"] == 1
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert len(found["cases"]) == count
    assert len({case["case"] for case in found["cases"]}) == count
    for case in found["cases"]:
        assert [row["name"] for row in case["candidates"]] == candidates
        for row in case["candidates"]:
            assert 0 < row["seconds"] < 60
            assert row["ratio"] == 1 or row["name"] != case["peer"]
            if name in COUNTED:
                assert math.isclose(row["gflops"], row["of_matmul"] * case["matmul_gflops"], rel_tol=1e-9)
            if name in NETWORKS | OPERATORS:
                # The formulas and orders of sums differ, in float32; a wrong weight or input would be seen.
                assert row["error"] < 1e-4
                assert row["rms_error"] < 1e-5


@pytest.mark.slow  # each imports what it is compared with
@pytest.mark.parametrize("name", NETWORKS | OPERATORS | TOKENIZER)
def test_quick_benchmark(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count, candidates = (NETWORKS | OPERATORS | TOKENIZER)[name]
    found = quick(name, tmp_path, monkeypatch)
    check(found, name, count, candidates)
    table = capsys.readouterr().out
    for case in found["cases"]:
        assert case["case"] in table
        for row in case["candidates"]:
            assert f"{row['ratio']:.3f}" in table


@pytest.mark.slow  # six processes that import torch
def test_loading_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = quick("loading", tmp_path, monkeypatch)
    check(found, "loading", *LOADING["loading"])
    for row in found["cases"][0]["candidates"]:
        assert row["peak_mb"] > 10


@pytest.mark.slow  # a process for each candidate
def test_peak_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network holds at least its weights."""
    found = quick("unet_step", tmp_path, monkeypatch, "--memory")
    (case,) = found["cases"]
    weights = 4 * sum(p.numel() for p in module("networks").build(module("networks").SMALL).unet.parameters())
    for row in case["candidates"]:
        assert weights < row["peak_mb"] * 1e6 < (10 if "optimized" in row["name"] else 6) * weights


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone counts a peak anew")
def test_a_peak_is_that_of_the_call_and_not_of_what_was_made_before_it() -> None:
    million = 2**20

    def make() -> Any:
        torch.zeros(200 * million, dtype=torch.uint8).fill_(1)  # gone before the call
        kept = torch.ones(30 * million, dtype=torch.uint8)
        return lambda: kept + 1

    assert 55 * million < module("memory").peak_of(make) < 120 * million


def test_times_and_ratios_are_those_of_the_candidates() -> None:
    """Candidates that sleep for known times: the median ratio, and a set-up that is not timed."""
    side_by_side, measure = module("side_by_side"), module("measure")
    prepared = []

    def sleeper(seconds: float) -> Any:
        return lambda: lambda: time.sleep(seconds)

    case = side_by_side.Case(
        name="sleeping",
        candidates={"short": sleeper(0.03), "long": sleeper(0.06)},
        peer="long",
        before=lambda: (prepared.append(1), time.sleep(0.05)),
    )
    args = side_by_side.options("Sleeps.").parse_args(["--rounds", "3"])
    short, long = measure.measure(case, args)["candidates"]
    # Sleeping never takes less, and on a busy machine any amount more.
    assert 0.03 <= short["seconds"] < long["seconds"]
    assert long["seconds"] >= 0.06
    assert 0.2 < short["ratio"] < 1
    assert len(prepared) == 2 * (1 + 3)


def test_errors_are_relative_to_the_largest_value_and_the_root_mean_square() -> None:
    expected = torch.tensor([3.0, -4.0])
    found = module("measure").errors(torch.tensor([3.0, -3.0]), expected)
    assert found == {"error": 0.25, "rms_error": pytest.approx((1 / 2) ** 0.5 / (25 / 2) ** 0.5)}


def test_the_report_replaces_what_is_between_the_comments_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    report = module("report")
    path, page, figure = tmp_path / "all.json", tmp_path / "page.md", tmp_path / "figure.png"
    benchmark = quick("text_encoder", tmp_path, monkeypatch)
    known = {"date": "2000-01-01", "quick": True, "machine": benchmark["machine"], "benchmarks": [benchmark]}
    path.write_text(json.dumps(known))
    page.write_text(f"# Above\n\n{report.BEGIN}old\n{report.END}\nBelow\n")
    for _ in range(2):  # the second time over the first's result
        run("report", [str(path), "--page", str(page), "--figure", str(figure)], monkeypatch)
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# Above\n\n{report.BEGIN}")
        assert text.endswith(f"{report.END}\nBelow\n")
        assert "old" not in text
        assert "numbers mean nothing" in text
        for row in benchmark["cases"][0]["candidates"]:
            assert f"| {row['name']} | {row['seconds']:.4f} | {row['ratio']:.3f} |" in text
    assert figure.stat().st_size > 5000
    with pytest.raises(ValueError, match="measured: begin"):
        report.replaced("no comments", "")


def test_everything_knows_every_benchmark() -> None:
    everything, report = module("everything"), module("report")
    known = set(NETWORKS | OPERATORS | TOKENIZER | LOADING)
    assert set(everything.FULL) == set(everything.QUICK) == set(report.TITLES) == known


def test_goals_stand_beside_what_was_measured() -> None:
    goals = module("goals")
    goal = goals.GOALS[0]
    row = {"name": goal.candidate, "ratio": 0.7654}
    case = {"case": f"{goal.case}, batch 2", "dtype": goal.dtype, "matmul_gflops": 432.1, "candidates": [row]}
    peer = case | {"case": f"{goal.case}, with OpenVINO", "candidates": [{"name": "OpenVINO", "ratio": 0.9}]}
    lines = goals.table({"benchmarks": [{"benchmark": goal.benchmark, "cases": [case, peer]}]}).splitlines()
    assert len(lines) == 2 + len(goals.GOALS)
    assert lines[2] == "| unet_step: sd1 U-Net | bfloat16 | ldm_core | 0.80 | 0.76 | 0.765 | 0.900 | 432 |"
    assert all("not measured" in line for line in lines[3:])


def test_an_interrupted_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything, begun = module("everything"), []

    def measured(name: str, args: Any, folder: str) -> dict[str, Any]:
        begun.append(name)
        if name == "autoencoder":
            raise KeyboardInterrupt
        return {"benchmark": name, "cases": [], "machine": {"threads": 1}}

    monkeypatch.setattr(everything, "measured", measured)
    arguments = ["everything.py", "--json", str(tmp_path / "all.json"), "--only", "attention", "autoencoder"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            everything.main()
    assert begun == ["attention", "autoencoder", "autoencoder"]
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], "--threads", "2"])
    everything.main()
    assert begun == ["attention", "autoencoder", "autoencoder", "attention"], "other settings begin anew"
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_is_short_and_says_what_it_measures(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) < 150
