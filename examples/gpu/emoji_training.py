"""The bundled model trained further for some minutes, its weights cut into parts, and evaluated.

The number of steps follows from their speed, which is measured first. What was stopped goes on with the next
call. The folder `parts` gets files of less than 16 MiB, and join.sh, which makes one file of them again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "train_emoji"
MODEL = ROOT / "weights" / "emoji.safetensors"
PROBE = 60  # steps whose speed is measured
WARM = 20  # of them, not counted
SHARE = 0.9  # of the minutes for steps; the rest is for pictures of samples and saving
PART = 15 * 2**20  # bytes
GRACE = 60  # seconds in which a stopped training saves its state


@dataclass(frozen=True)
class Training:
    """out: where everything goes. data: what examples/train_emoji/prepare.py made. minutes: of training.

    model: what it begins with. evaluator: a CLIP that judges the pictures, or None for no evaluation.
    """

    out: Path
    data: Path
    minutes: float
    device: str
    model: Path = MODEL
    evaluator: Path | None = None
    script: Path = RECIPE / "train.py"

    @property
    def folder(self) -> Path:
        """Of the run: its state and its log."""
        return self.out / "runs" / "further"

    @property
    def result(self) -> Path:
        return self.out / "runs" / "further.safetensors"


def run_until(command: Sequence[str], deadline: float) -> bool:
    """Run a command. At the deadline it gets SIGTERM, at which training saves. Returns whether it ended."""
    process = subprocess.Popen(command)
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(GRACE)
        return False
    finally:
        process.kill()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return True


def last_step(metrics: Path) -> int:
    """The last step in a run's metrics.csv; 0 where there is none."""
    lines = metrics.read_text(encoding="utf-8").splitlines()[1:] if metrics.exists() else []
    numbers = [line.split(",")[0] for line in lines]
    return int(numbers[-1]) if numbers else 0


def seconds_per_step(command: Sequence[str], run: Path) -> float:
    """Of a short run, which is removed. Its log shows when a step is reached."""
    shutil.rmtree(run, ignore_errors=True)
    seen: dict[int, float] = {}
    process = subprocess.Popen([*command, "--steps", str(PROBE)])
    try:
        while process.poll() is None:
            seen.setdefault(last_step(run / "metrics.csv"), time.monotonic())
            time.sleep(0.02)
        seen.setdefault(last_step(run / "metrics.csv"), time.monotonic())
    finally:
        process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    shutil.rmtree(run)
    first = min(step for step in seen if step >= WARM)
    return (seen[PROBE] - seen[first]) / (PROBE - first) if first < PROBE else 0.02 / PROBE


def train(training: Training, deadline: float) -> bool:
    """Train up to the number of steps that fits the minutes. Returns whether the model is finished."""
    command = [
        sys.executable, str(training.script), "further", str(training.data), str(training.out / "runs"),
        "--model", str(training.model), "--device", training.device, "--precision", "bfloat16",
        "--text", "frozen", "--quiet",
    ]  # fmt: skip
    if training.result.exists():
        return True
    note = training.out / "training.json"
    if not note.exists():
        seconds = seconds_per_step(command, training.folder)
        training.result.unlink()  # that of the short run
        steps = max(PROBE, int(SHARE * 60 * training.minutes / seconds))
        note.write_text(json.dumps({"seconds_per_step": seconds, "steps": steps}), encoding="utf-8")
    known = json.loads(note.read_text(encoding="utf-8"))
    print(f"{known['steps']} steps of {1e3 * known['seconds_per_step']:.1f} ms", flush=True)
    return run_until([*command, "--steps", str(known["steps"])], deadline)


def evaluate(training: Training, deadline: float) -> bool:
    """The recipe's evaluation with 200 concepts. Returns whether it is there, or cannot be."""
    if training.evaluator is None:
        print("no evaluation: it needs --evaluator, the CLIP that train.py's stage `clip` leaves", flush=True)
        return True
    out = training.out / "evaluation"
    if (out / "evaluation.json").exists():
        return True
    command = [
        sys.executable, str(RECIPE / "evaluate.py"), str(training.result), str(training.data),
        str(training.evaluator), str(out), "--concepts", "200", "--pairs", "50", "--batch-size", "64",
        "--device", training.device,
    ]  # fmt: skip
    return run_until(command, deadline)


def cut(path: Path, folder: Path, size: int = PART) -> list[Path]:
    """Write a file's parts, and join.sh, which makes the file of them again and checks it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    contents = path.read_bytes()
    parts = []
    for first in range(0, len(contents), size):
        parts.append(folder / f"{path.name}.{len(parts):03}")
        parts[-1].write_bytes(contents[first : first + size])
    digest = hashlib.sha256(contents).hexdigest()
    lines = [
        "#!/bin/sh",
        'cd "$(dirname "$0")" || exit 1',
        f"cat {path.name}.[0-9][0-9][0-9] > {path.name} && echo '{digest}  {path.name}' | sha256sum -c",
    ]
    (folder / "join.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return parts


def run(training: Training, minutes: float) -> str:
    """Train, cut and evaluate for at most so many minutes. Returns what is done; the next call goes on.

    Raises CalledProcessError if a script fails, whose messages are on the terminal.
    """
    deadline = time.monotonic() + 60 * minutes
    training.out.mkdir(parents=True, exist_ok=True)
    if not train(training, deadline):
        return f"training stopped after step {last_step(training.folder / 'metrics.csv')}: go on with it"
    parts = cut(training.result, training.out / "parts")
    if not evaluate(training, deadline):
        return "trained; the evaluation stopped: go on with it"
    return f"trained; {training.out / 'parts'} has {len(parts)} parts and join.sh"
