"""The ratios that this package aims at on a CPU, and what a report of everything.py has for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A candidate's time over the peer's for one case of a benchmark: at most this, and hoped for that."""

    benchmark: str
    case: str  # part of its name
    dtype: str
    candidate: str
    at_most: float
    hoped: float


DEFAULT, OPTIMIZED = "ldm_core", "ldm_core, optimized"
GOALS = (
    Goal("unet_step", "sd1 U-Net", "bfloat16", DEFAULT, 0.80, 0.76),
    Goal("unet_step", "sd1 U-Net", "bfloat16", OPTIMIZED, 0.76, 0.70),
    Goal("unet_step", "sd1 U-Net", "float32", DEFAULT, 0.84, 0.80),
    Goal("unet_step", "sd1 U-Net", "float32", OPTIMIZED, 0.67, 0.62),
    Goal("text_encoder", "sd1", "float32", OPTIMIZED, 0.78, 0.74),
    Goal("text_encoder", "sd1", "bfloat16", OPTIMIZED, 0.90, 0.85),
    Goal("end_to_end", "sd1, 512×512", "bfloat16", DEFAULT, 0.80, 0.76),
    Goal("attention", "(2, 8, 4096, 4096, 40)", "bfloat16", "auto", 0.68, 0.60),
)


def table(report: dict[str, Any]) -> str:
    """Markdown: each goal beside what was measured, OpenVINO's ratio, and the rate of a matrix product."""
    lines = [
        "| work | type | by | at most | hoped for | measured | OpenVINO | matmul, GFLOP/s |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for goal in GOALS:
        case, row = found(report, goal)
        _, peer = found(report, replace(goal, candidate="OpenVINO"))
        ratio = "not measured" if row is None else f"{row['ratio']:.3f}"
        openvino = "" if peer is None else f"{peer['ratio']:.3f}"
        matmul = "" if case is None or not case["matmul_gflops"] else f"{case['matmul_gflops']:.0f}"
        cells = (
            goal.case,
            goal.dtype,
            goal.candidate,
            f"{goal.at_most:.2f}",
            f"{goal.hoped:.2f}",
            ratio,
            openvino,
            matmul,
        )
        lines.append(f"| {goal.benchmark}: {' | '.join(cells)} |")
    return "\n".join(lines)


def found(report: dict[str, Any], goal: Goal) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The case and the candidate of a goal in a report."""
    for benchmark in report["benchmarks"]:
        for case in benchmark["cases"]:
            if benchmark["benchmark"] == goal.benchmark and goal.case in case["case"]:
                rows = [row for row in case["candidates"] if row["name"] == goal.candidate]
                if case["dtype"] == goal.dtype and rows:
                    return case, rows[0]
    return None, None
