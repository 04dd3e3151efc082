"""The machine and its ceilings; and this package's tests for a GPU."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from first_day_plan import Plan
from gpu_timing import replayed, rotation
from processes import end_with_parent
from stage_report import NotHere, Row, StageReport
from torch import Tensor

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "numpy", "safetensors", "regex", "tqdm", "pillow", "pytest", "hypothesis")
OUTCOME = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", re.MULTILINE)


def machine(report: StageReport, plan: Plan) -> None:
    report.row("machine", lambda: facts(plan))
    report.row("copy", lambda: copy(plan))
    for dtype in plan.dtypes:
        report.row(f"matrix product, {dtype}", lambda dtype=dtype: matmul(plan, dtype))


def facts(plan: Plan) -> Row:
    known: Row = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "device": "the CPU: a dry run, whose numbers mean nothing",
    }
    if plan.device == "cuda":
        if not torch.cuda.is_available():
            raise NotHere("PyTorch finds no CUDA device; --dry-run needs none")
        properties = torch.cuda.get_device_properties(0)
        known |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return known


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    if path.exists():
        return path.read_text(encoding="utf-8").splitlines()[0]
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def copy(plan: Plan) -> Row:
    """The rate of a copy within the device's memory, of bytes read and written together."""
    source = torch.randn(plan.copy_bytes // 4, device=plan.device)
    target = torch.empty_like(source)
    time = replayed(target.copy_, [(source,)], plan.rounds)
    return {**time, "tb_per_s": 2 * plan.copy_bytes / time["seconds"] / 1e12}


def matmul(plan: Plan, dtype: str) -> Row:
    """The rate of a large matrix product of random numbers: of zeros it is higher."""
    rows = plan.matmul

    def inputs() -> tuple[Tensor, Tensor]:
        a, b = torch.randn(2, rows, rows, device=plan.device).to(getattr(torch, dtype))
        return a, b

    time = replayed(torch.matmul, rotation(inputs, plan.device, most=2), plan.rounds)
    return {**time, "tflops": 2 * rows**3 / time["seconds"] / 1e12}


def gpu_tests(report: StageReport, plan: Plan) -> None:
    """`pytest -m gpu`, with the outcome of each test. A run that is out of time leaves those it came to."""
    missing = [
        name for name in ("pytest", "hypothesis", "regex", "PIL") if not importlib.util.find_spec(name)
    ]
    log = report.path.with_suffix(".log")

    def run() -> Row:
        if missing:
            raise NotHere(f"the tests need {', '.join(missing)}, which is not installed")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
        with log.open("wb") as file:
            done = subprocess.run(
                [*command, *map(str, test_files())],
                stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, preexec_fn=end_with_parent, check=False,
            )  # fmt: skip
        return {"exit_code": done.returncode, **outcomes(log)}

    report.row("pytest -m gpu", run)


def test_files() -> list[Path]:
    """Those with tests for a GPU: the others may need packages that are not installed here."""
    files = sorted((ROOT / "tests").glob("*/test_*.py"))
    return [path.relative_to(ROOT) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def outcomes(log: Path) -> dict[str, Any]:
    """The counts of outcomes in the log of a run, whole or not, and the names of the tests that failed."""
    found = OUTCOME.findall(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
    words = [outcome.lower() for _, outcome in found]
    counts = {word: words.count(word) for word in ("passed", "failed", "error", "skipped") if word in words}
    return {"outcomes": counts, "bad": [name for name, outcome in found if outcome in ("FAILED", "ERROR")]}
