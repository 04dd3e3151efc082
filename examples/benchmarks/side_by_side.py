"""The harness of these benchmarks: several ways to compute one thing, timed in turn in one process.

A `Case` names its candidates. `run` makes them all, calls each once or twice to warm up, and then goes round:
every candidate is timed in every round, in alternating order, so that whatever else the machine does meets
all of them. Shown are the median of the times, and the median over the rounds of the ratio to one named peer.
With the number of arithmetic operations known, it also shows how much of a matrix product's speed is reached;
that product is a candidate like the others, timed in the same rounds. Peak memory (`--memory`) is measured
in a process of its own for each candidate. Errors are the largest difference over the largest value, and the
root mean square of the differences over that of the values.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import has_bf16_units, machine
from measure import Case, measure
from memory import peak_of

COLUMNS = {
    "seconds": ("seconds", "{:.4f}"),
    "ratio": ("ratio", "{:.3f}"),
    "gflops": ("GFLOP/s", "{:.0f}"),
    "of_matmul": ("of matmul", "{:.2f}"),
    "peak_mb": ("peak MB", "{:.0f}"),
    "error": ("error", "{:.1e}"),
    "rms_error": ("rms error", "{:.1e}"),
}


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    dtypes = ["float32", "bfloat16"]
    usual = dtypes if has_bf16_units() else dtypes[:1]
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=usual, help="by default what is fast")
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--seconds", type=float, default=0, help="more rounds, until they took so long")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these candidates, and the peer")
    parser.add_argument("--memory", action="store_true", help="also each candidate's peak memory")
    parser.add_argument("--cpu-time", action="store_true", help="one thread's CPU time: for a busy machine")
    parser.add_argument("--matmul", type=int, default=2048, help="rows of the matrix product to compare with")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    return parser


@torch.no_grad()
def run(benchmark: str, cases: Iterable[Case], args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise SystemExit(f"--rounds must be at least 1, not {args.rounds}")
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    if args.peak:  # this is a process that `peak_in_a_process` started
        make = next(case.candidates[args.peak[1]] for case in cases if case.name == args.peak[0])
        print(peak_of(make))
        return
    results = []
    for case in cases:
        results.append(measure(case, args))
        print(table(benchmark, results[-1]), flush=True)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "peak")}
        report = {"benchmark": benchmark, "settings": settings, "machine": machine(), "cases": results}
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def table(benchmark: str, result: dict[str, Any]) -> str:
    """One case for the terminal."""
    rows = result["candidates"]
    shown = {key: column for key, column in COLUMNS.items() if key in rows[0]}
    lines = [f"\n{benchmark}: {result['case']}, {result['dtype']}; ratios to {result['peer']}"]
    if result["matmul_gflops"]:
        lines[0] += f"; a matrix product reaches {result['matmul_gflops']:.0f} GFLOP/s"
    lines.append(f"{'':28}" + "".join(f"{title:>12}" for title, _ in shown.values()))
    for row in rows:
        cells = (form.format(row[key]) for key, (_, form) in shown.items())
        lines.append(f"{row['name']:28}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
