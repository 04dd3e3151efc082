"""summary.md: what was measured beside the goals and the predictions, ready for the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_stages import KERNELS, best_tiles, table_rows

Row = dict[str, Any]
MISS = 4 / 3  # beyond this factor from the predicted range a cause is to be found
WAYS = ("eager", "graph", "captured", "compiled", "compiled, captured")


@dataclass(frozen=True)
class Goal:
    """Two limits of a figure: the published record or first aim, and what is hoped for then."""

    name: str
    unit: str
    first: float
    then: float | None
    higher_is_better: bool = True

    def verdict(self, value: float) -> str:
        sign = 1 if self.higher_is_better else -1
        reached = [limit for limit in (self.first, self.then) if limit and sign * value > sign * limit]
        return f"past {reached[-1]:g}" if reached else "not reached"


STEP = Goal("SD1 U-Net, 512×512, one picture with guidance", "it/s", 104.6, 200)
PICTURE = Goal("a 50-step picture, 512×512, with guidance", "ms", 570, 300, higher_is_better=False)
ATTENTION = Goal("our attention, head size 40, n = 4096", "useful TFLOP/s", 300, None)


def write_summary(folder: Path) -> str:
    """The text, which is also written to summary.md in the folder. Stages without a file are left out."""
    stages = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    rows = {name: stage["rows"] for name, stage in stages.items()}
    parts = [
        _machine(rows.get("machine", [])),
        _goals(rows),
        _tests(rows.get("tests", [])),
        _attention(rows.get("attention", [])),
        _tiles(rows.get("tiles", []), capability(rows.get("machine", []))),
        _networks("A step of the U-Net", rows.get("unet", []), "it/s", lambda row: row["it_per_s"]),
        _predicted_steps(rows.get("unet", [])),
        _networks("Decoding", rows.get("decoder", []), "ms", lambda row: 1e3 * row["seconds"]),
        _networks("Whole pictures", rows.get("picture", []), "pictures/s", lambda row: row["pictures_per_s"]),
        _left_out(stages),
    ]
    text = "\n".join(part for part in parts if part)
    partial = folder / "summary.md.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / "summary.md")
    return text


def capability(machine: Iterable[Row]) -> str:
    """The GPU's compute capability, such as "9.0"; of a dry run, that of the interpreter's tiles."""
    return next((row["capability"] for row in machine if "capability" in row), "8.0")


def _table(titles: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    titles = list(titles)
    rows = [titles, ["---"] * len(titles), *(list(map(str, line)) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _machine(rows: list[Row]) -> str:
    by_name = {row["name"]: row for row in rows}
    known = by_name.get("machine", {})
    versions = {name: v for name, v in known.get("versions", {}).items() if name in ("torch", "triton")}
    words = [
        str(known.get("device", "machine unknown")),
        *([f"compute capability {known['capability']}"] if "capability" in known else []),
        *(f"{name} {v}" for name, v in versions.items()),
        *(
            [f"copies {by_name['copy']['tb_per_s']:.2f} TB/s"]
            if "tb_per_s" in by_name.get("copy", {})
            else []
        ),
        *(f"{name} {row['tflops']:.0f} TFLOP/s" for name, row in by_name.items() if "tflops" in row),
    ]
    return f"## Measured\n\n{'; '.join(words)}.\n"


def _goals(rows: dict[str, list[Row]]) -> str:
    steps = [r for r in rows.get("unet", []) if r.get("batch") == 1 and "it_per_s" in r]
    drawn = [r for r in rows.get("picture", []) if r.get("batch") == 1 and "seconds" in r]
    longest = [r for r in rows.get("attention", []) + rows.get("tiles", []) if r.get("size") == "self 4096"]
    ours = [r for r in longest if r.get("kernel", "triton") == "triton" and not r.get("backward")]
    found: list[tuple[Goal, float, str] | tuple[Goal, None, str]] = [
        _best(STEP, steps, lambda row: row["it_per_s"]),
        _best(PICTURE, drawn, lambda row: 1e3 * row["seconds"]),
        _best(ATTENTION, ours, lambda row: row["tflops"]),
    ]
    lines = [
        (
            goal.name,
            f"{goal.first:g}" + (f", then {goal.then:g}" if goal.then else "") + f" {goal.unit}",
            "not measured" if value is None else f"{value:.4g}",
            "" if value is None else goal.verdict(value),
            by,
        )
        for goal, value, by in found
    ]
    return "### Goals\n\n" + _table(("goal", "limit", "measured", "verdict", "best by"), lines)


def _best(goal: Goal, rows: list[Row], value: Callable[[Row], float]) -> tuple[Goal, float | None, str]:
    if not rows:
        return goal, None, ""
    row = (max if goal.higher_is_better else min)(rows, key=value)
    return goal, value(row), row["name"]


def _tests(rows: list[Row]) -> str:
    if not rows:
        return ""
    row = rows[0]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in row.get("outcomes", {}).items())
    bad = "".join(f"- `{name}`\n" for name in row.get("bad", []))
    return f"### `pytest -m gpu`\n\n{counts or row.get('skipped') or row.get('error')}\n\n{bad}"


def _attention(rows: list[Row]) -> str:
    timed = {(r["size"], r["backward"], r["dtype"], r["kernel"]): r for r in rows if "us" in r}
    groups = dict.fromkeys(key[:3] for key in timed)
    lines = []
    for group in groups:
        found = {name: timed[(*group, name)] for name in KERNELS if (*group, name) in timed}
        ours = found.get("triton", {})
        others = [row["us"] for name, row in found.items() if name != "triton"]
        any_row = next(iter(found.values()))
        lines.append((
            group[0], "forward and backward" if group[1] else "forward", group[2],
            *(f"{found[name]['us']:.1f}" if name in found else "" for name in KERNELS),
            f"{ours['us'] / min(others):.2f}" if ours and others else "",
            f"{ours['tflops']:.0f}" if ours else "",
            f"{any_row['floor_us']:g}" if any_row["floor_us"] else "",
            "; ".join(f"{name} {_range(row)}" for name, row in found.items() if row["predicted_us"]),
        ))  # fmt: skip
    titles = ("size", "what", "type", *(f"{name}, µs" for name in KERNELS))
    more = ("ours / best other", "ours, TFLOP/s", "floor, µs", "predicted, µs")
    return "### Attention\n\n" + _table((*titles, *more), lines) if lines else ""


def _range(row: Row) -> str:
    low, high = row["predicted_us"]
    return f"{low:g}–{high:g}{_missed(row['us'], low, high)}"


def _missed(value: float, low: float, high: float) -> str:
    return " (**missed**)" if value > high * MISS or value < low / MISS else ""


def _tiles(rows: list[Row], capability: str) -> str:
    best = best_tiles(rows, capability)
    if not best:
        return ""
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows if "size" in row):
        timed = [row for row in rows if row.get("size") == size and "us" in row]
        tried = [row for row in timed if row["tile"]]
        table = next((f"{row['us']:.2f}" for row in timed if not row["tile"]), "")
        if tried:
            first = min(tried, key=lambda row: row["us"])
            lines.append((size, table, f"{first['us']:.2f}", first["name"].split(", ", 2)[2]))
    text = "### Tiles\n\n" + _table(("size", "the table's tile, µs", "best, µs", "best tile"), lines)
    for table, tiles in best.items():
        code = "".join(f"    {row},\n" for row in table_rows(tiles).values())
        text += f"\nFor `{table}` in `ldm_core/kernels/tiles.py`:\n\n```py\n{code}```\n"
    return text


def _networks(title: str, rows: list[Row], unit: str, value: Callable[[Row], float]) -> str:
    timed = {(r["dtype"], r["batch"], r["kind"], r["way"]): r for r in rows if "seconds" in r}
    ways = [way for way in WAYS if any(key[3] == way for key in timed)]
    lines = []
    for group in dict.fromkeys(key[:3] for key in timed):
        found = [timed.get((*group, way)) for way in ways]
        peaks = [row["peak_gb"] for row in found if row and "peak_gb" in row]
        lines.append((
            *group,
            *("" if row is None else f"{value(row):.4g}" for row in found),
            f"{max(peaks):.1f}" if peaks else "",
        ))  # fmt: skip
    titles = ("type", "batch", "kernels", *(f"{way}, {unit}" for way in ways), "peak GB")
    return f"### {title}\n\n" + _table(titles, lines) if lines else ""


def _predicted_steps(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if "seconds" in row and (row.get("predicted_ms") or row.get("predicted_kernels")):
            ms, predicted = 1e3 * row["seconds"], row.get("predicted_ms")
            words = f"{predicted[0]:g}–{predicted[1]:g}{_missed(ms, *predicted)}" if predicted else ""
            launches = row.get("kernels", ""), row.get("predicted_kernels") or ""
            lines.append((row["name"], f"{ms:.2f}", words, *launches))
    titles = ("step", "ms", "predicted, ms", "launches", "predicted")
    return "### Steps against their predictions\n\n" + _table(titles, lines) if lines else ""


def _left_out(stages: dict[str, Any]) -> str:
    """All that has no figure, by name: stages that were stopped, rows that failed or were skipped."""
    lines = [
        (name, "all that is not above", stage["state"])
        for name, stage in stages.items()
        if stage["state"] != "done"
    ]
    lines += [
        (name, row["name"], (row.get("error") or row["skipped"]).replace("|", "\\|"))
        for name, stage in stages.items()
        for row in stage["rows"]
        if "error" in row or "skipped" in row
    ]
    return "### Without a figure\n\n" + _table(("stage", "what", "why"), lines) if lines else ""
