"""Loading SD1 at its published size: time and memory against the plain readers and diffusers' loader."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.reference import settings_folder
from support.timed_loading import forget, measure

from ldm_core.checkpoint import inspect
from ldm_core.config import SD1

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_loading_4_gb_takes_the_memory_and_time_of_the_file(sd1_files: dict[str, Path], ending: str) -> None:
    """Peak at most 1.15 × the file; time, with every weight read, at most 1.5 × the plain readers'.

    From the disk. From a warm page cache 4.3 GB are touched in a fifth of a second, and making 900 modules
    and checking a thousand headers takes as long again: the ratio is printed, and is below 2.5.
    """
    path = sd1_files[ending]
    size = path.stat().st_size
    assert size > 4.2e9
    ratios, memory = {}, 0.0
    for cache, bound in (("cold", 1.5), ("warm", 2.5)):
        plain, ours = [], []
        for attempt in range(4):  # alternating; more than twice only where other work disturbed
            if attempt >= 2 and min(ours) <= bound * min(plain):
                break
            for how, times in (("plain", plain), ("ldm_core", ours)):
                if cache == "cold":
                    forget(path)
                run = measure(path, how)
                times.append(run["loaded"] if how == "ldm_core" else run["seconds"])
                memory = max(memory, run["peak"] / size) if how == "ldm_core" else memory
        ratios[cache] = min(ours) / min(plain)
    print(f"{ending}: peak {memory:.3f} × the file; time {ratios['cold']:.2f} × reading it from the disk,")
    print(f"    {ratios['warm']:.2f} × from a warm page cache")
    assert memory <= 1.15
    assert ratios["cold"] <= 1.5
    assert ratios["warm"] <= 2.5


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_loading_is_as_fast_as_diffusers_single_file_loader(
    sd1_files: dict[str, Path], ending: str, tmp_path: Path
) -> None:
    """The same file, alternating, until every weight has been read; and at most 1.15 × its size in memory.

    On a chip with AVX-512 diffusers takes 0.6 s. There the check that every value is finite, which it lacks,
    costs 0.2 s, and the ratio is 1.1. On one with AVX2 it was 0.6.
    """
    path = sd1_files[ending]
    folder = settings_folder(SD1, tmp_path / "settings")
    runs: dict[str, list[dict[str, float]]] = {"ldm_core": [], "diffusers": []}
    ours, theirs = float("inf"), 0.0
    while (ours > 1.1 * theirs and len(runs["ldm_core"]) < 5) or len(runs["ldm_core"]) < 2:
        for how, measured in runs.items():
            measured.append(measure(path, how, folder))
        ours, theirs = (min(run["seconds"] for run in measured) for measured in runs.values())
    memory = [max(run["peak"] for run in measured) / path.stat().st_size for measured in runs.values()]
    print(f"{ending}: {ours / theirs:.2f} × diffusers' time, until every weight has been read;")
    print(f"    peak {memory[0]:.2f} × the file, diffusers' {memory[1]:.2f}")
    assert ours <= 1.5 * theirs
    assert memory[0] <= 1.15


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_the_doctor_needs_two_seconds(sd1_files: dict[str, Path], ending: str) -> None:
    start = time.perf_counter()
    report = inspect(sd1_files[ending])
    seconds = time.perf_counter() - start
    assert report.presets == ("sd1",)
    assert seconds < 2
    print(f"{ending}: {seconds:.2f} s")
