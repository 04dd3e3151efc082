"""examples/gpu/emoji_training.py: minutes become steps, what was stopped goes on, parts become the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "gpu"
# Stands in for train.py: a step takes 5 ms; it logs every 10 and at SIGTERM saves where it is.
SCRIPT = """
import json, signal, sys, time
from pathlib import Path

stage, data, runs = sys.argv[1], sys.argv[2], Path(sys.argv[3])
value = lambda option: sys.argv[sys.argv.index(option) + 1]
assert stage == "further" and value("--precision") == "bfloat16" and value("--device") == "cpu"
folder, steps, stopping = runs / "further", int(value("--steps")), []
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
state, log = folder / "state", folder / "metrics.csv"
step = int(state.read_text()) if state.exists() else 0
if not step:
    log.write_text("step,loss\\n")
while step < steps and not stopping:
    time.sleep(0.005)
    step += 1
    if step % 10 == 0:
        with log.open("a") as file:
            file.write(f"{step},0.1\\n")
state.write_text(str(step))
if stopping:
    sys.exit(143)
(runs / "further.safetensors").write_bytes(json.dumps(steps).encode())
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and shells are POSIX")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__("emoji_training")


@pytest.mark.slow  # two runs of training
def test_minutes_become_steps_and_a_stopped_run_goes_on(training: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    wish = training.Training(out, tmp_path, minutes=0.04, device="cpu", script=script)  # 2.4 seconds
    said = training.run(wish, minutes=1 / 60)
    known = json.loads((out / "training.json").read_text())
    assert 0.004 < known["seconds_per_step"] < 0.1
    assert known["steps"] == max(training.PROBE, int(0.9 * 2.4 / known["seconds_per_step"]))
    if "stopped" in said:  # else the machine was too slow for more than the least number of steps
        reached = int((wish.folder / "state").read_text())
        assert 0 < reached < known["steps"]
        assert not wish.result.exists()
        said = training.run(wish, minutes=10)
    assert said.startswith("trained; ")
    assert wish.result.read_text() == str(known["steps"])
    before = wish.result.stat().st_mtime_ns
    training.run(wish, minutes=10)
    assert wish.result.stat().st_mtime_ns == before


def test_a_script_that_fails_ends_it(training: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit(2)")
    wish = training.Training(tmp_path / "out", tmp_path, minutes=1, device="cpu", script=script)
    with pytest.raises(subprocess.CalledProcessError):
        training.run(wish, minutes=1)


def test_parts_become_the_file_again(training: ModuleType, tmp_path: Path) -> None:
    whole = tmp_path / "further.safetensors"
    whole.write_bytes(os.urandom(2500))
    for _ in range(2):
        parts = training.cut(whole, tmp_path / "parts", size=1000)
        assert [path.stat().st_size for path in parts] == [1000, 1000, 500]
        done = subprocess.run(["sh", str(tmp_path / "parts" / "join.sh")], capture_output=True, check=True)
        assert done.stdout == b"further.safetensors: OK\n"
    assert (tmp_path / "parts" / "further.safetensors").read_bytes() == whole.read_bytes()
    parts[1].write_bytes(bytes(1000))
    assert subprocess.run(["sh", str(tmp_path / "parts" / "join.sh")], capture_output=True).returncode
    assert training.PART < 16 * 2**20


def test_training_needs_its_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    for options in (["--train", "20"], ["--data", str(tmp_path)]):
        with pytest.raises(SystemExit):
            __import__("first_day").main([str(tmp_path / "out"), *options])
    assert sys.path[0] == str(FOLDER)
