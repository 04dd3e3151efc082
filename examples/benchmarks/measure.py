"""One case of a benchmark: its candidates warmed up, timed in turn, and compared. See side_by_side.py."""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MATMUL = "matrix product"
SHORT = 0.02  # seconds; what is quicker is repeated until it has taken so long


@dataclass(frozen=True)
class Case:
    """What is compared. A candidate is made, with its weights, by a function that returns what to time."""

    name: str
    candidates: dict[str, Callable[[], Callable[[], Any]]]
    peer: str
    dtype: str = "float32"
    operations: int | None = None  # additions and multiplications of one call, for GFLOP/s
    exact: Callable[[], Tensor] | None = None  # else differences are from the peer's output
    before: Callable[[], None] | None = None  # run before every call, and not timed
    warm: bool = True  # call each candidate before it is timed; minutes of work gain nothing by it


@dataclass(frozen=True)
class Measured:
    """What a candidate returns that has measured itself, in a process of its own."""

    seconds: float
    peak: float  # bytes


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Every candidate of a case, as plain values for JSON."""
    exact = case.exact() if case.exact else None
    wanted = [name for name in case.candidates if not args.only or name in (*args.only, case.peer)]
    calls = {name: case.candidates[name]() for name in wanted}
    if case.operations:
        calls[MATMUL] = matrix_product(args.matmul, case.dtype)
    clock = time.process_time if args.cpu_time else time.perf_counter
    outputs: dict[str, Any] = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        outputs[name], repeats[name] = warm_up(case, call) if case.warm else (None, 1)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.monotonic()
    for k in itertools.count():
        if k >= args.rounds and time.monotonic() - begun >= args.seconds:
            break
        for name in list(calls)[:: 1 if k % 2 == 0 else -1]:
            outputs[name], took = timed(case, calls[name], repeats[name], clock)
            seconds[name].append(took)
    operations = dict.fromkeys(calls, case.operations) | {MATMUL: 2 * args.matmul**3}
    matmul = operations[MATMUL] / statistics.median(seconds[MATMUL]) / 1e9 if case.operations else None
    rows = []
    for name in wanted:
        row = {"name": name, "seconds": statistics.median(seconds[name])}
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds[name], seconds[case.peer]))
        if matmul:
            row["gflops"] = operations[name] / row["seconds"] / 1e9
            row["of_matmul"] = row["gflops"] / matmul
        expected = outputs[case.peer] if exact is None else exact
        if isinstance(expected, Tensor):
            row |= errors(outputs[name], expected)
        if isinstance(outputs[name], Measured):
            row["peak_mb"] = outputs[name].peak / 1e6
        elif args.memory:
            row["peak_mb"] = peak_in_a_process(case, name) / 1e6
        rows.append(row)
    known = {"case": case.name, "dtype": case.dtype, "peer": case.peer, "matmul_gflops": matmul}
    return known | {"candidates": rows}


def warm_up(case: Case, call: Callable[[], Any]) -> tuple[Any, int]:
    """A call's output, and how often it must be repeated to be measurable."""
    if case.before:
        case.before()
        return call(), 1
    for _ in range(2):
        begin = time.perf_counter()
        output = call()
        seconds = time.perf_counter() - begin
        if seconds > 1:
            break
    return output, max(1, round(SHORT / seconds))


def timed(case: Case, call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[Any, float]:
    """A call's output, and the seconds that it took."""
    if case.before:
        case.before()
    begin = clock()
    for _ in range(repeats):
        output = call()
    seconds = (clock() - begin) / repeats
    return output, output.seconds if isinstance(output, Measured) else seconds


def matrix_product(rows: int, dtype: str) -> Callable[[], Tensor]:
    a, b = torch.randn(2, rows, rows, dtype=getattr(torch, dtype))
    return lambda: a @ b


def errors(output: Tensor, expected: Tensor) -> dict[str, float]:
    difference = output.double() - expected.double()
    return {
        "error": float(difference.abs().max() / expected.abs().max()),
        "rms_error": float(difference.square().mean().sqrt() / expected.double().square().mean().sqrt()),
    }


def peak_in_a_process(case: Case, name: str) -> int:
    command = [sys.executable, *sys.argv, "--peak", case.name, name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{run.stderr}")
    return int(run.stdout.splitlines()[-1])
