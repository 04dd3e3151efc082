"""The scripts that measure jobs run, and print figures that can be true."""

from __future__ import annotations

import csv
import re
import runpy
import sys
from pathlib import Path

import pytest
from support.job_runs import many, painted_job, write_rows

from ldm_core.jobs import open_rows, run

FOLDER = Path(__file__).parents[2] / "examples" / "jobs"


def printed(
    script: str, arguments: list[str], patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
) -> str:
    patch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    return capture.readouterr().out


def test_the_simulation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without failures nothing is lost, and a queue ends when its share of the work is done."""
    small = ["--workers", "50", "--rows", "50000", "--shards", "10", "--stragglers", "0"]
    text = printed("simulate", [*small, "--between-failures", "1e12"], monkeypatch, capsys)
    ideal = float(text.split("waiting: ")[1].split(" h")[0])
    lost_static, lost_queue, static, queue = re.findall(r"[\d.]+", text.splitlines()[-1])[-4:]
    assert float(lost_static) == float(lost_queue) == 0
    assert ideal <= float(queue) < 1.05 * ideal < float(static)
    often = printed("simulate", [*small, "--between-failures", "1000", "--spread", "0"], monkeypatch, capsys)
    expected, static, _ = (float(value) for value in re.findall(r"([\d.]+)%", often))
    assert 0.7 * expected < static < 1.3 * expected


@pytest.mark.slow  # 300 pictures
def test_memory_and_overhead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform == "linux":
        text = printed("memory", ["--rows", "300"], monkeypatch, capsys)
        assert "300 drawn; verified, 0 problems" in text
    text = printed("overhead", ["--rows", "2", "--steps", "1", "--batch-size", "2"], monkeypatch, capsys)
    assert re.search(r"processor time per picture: \d+\.\d ms in the sampler, \d+\.\d\d ms elsewhere", text)


def test_folders_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed("emoji_rows", [str(tmp_path / "emoji.csv"), "--rows", "20"], monkeypatch, capsys)
    assert open_rows(tmp_path / "emoji.csv").scan(8).count == 20
    with open(tmp_path / "emoji.csv", encoding="utf-8", newline="") as file:
        sides = {int(row[name]) for row in csv.DictReader(file) for name in ("width", "height")}
    assert sides == {64, 128}  # multiples of 64, which the bundled model draws
    rows = write_rows(tmp_path / "rows.jsonl", many(5))
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, seed in zip(folders, (0, 1)):
        run(painted_job(rows, folder, seed=seed))
    a, b = map(str, folders)
    text = printed("compare", [a, a, b], monkeypatch, capsys)
    assert "5 rows, 5 equal pictures, 5 equal recipes; pixels differ by at most 0" in text
    assert "5 rows, 0 equal pictures, 0 equal recipes" in text
