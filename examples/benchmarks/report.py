"""From everything.py's JSON: the measured part of docs/performance.md, and its picture.

    python examples/benchmarks/report.py performance.json [--page docs/performance.md] [--figure PNG]

The tables go between two comments of the page; all else on it is left as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from goals import table
from side_by_side import COLUMNS

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
TITLES = {
    "attention": "Attention",
    "convolution": "3×3 convolutions",
    "linear": "Linear layers",
    "unet_step": "One call of the U-Net",
    "autoencoder": "The autoencoder",
    "text_encoder": "The text encoder",
    "end_to_end": "A picture from a prompt",
    "loading": "Loading a checkpoint",
    "tokenizer": "The tokenizer",
}
WITH_OPENVINO = ", with OpenVINO"  # what everything.py appends to the name of a case
IN_THE_PICTURE = ("unet_step", "autoencoder", "text_encoder", "end_to_end", "loading", "tokenizer")


def conditions(report: dict[str, Any]) -> str:
    known = report["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in known["versions"].items() if v)
    sets = ", ".join(known["instruction_sets"]) or "no instruction sets known"
    return (
        f"Measured on {report['date']}: {known['cpu']} ({sets}), {known['cores']} cores, {known['threads']} "
        f"threads; {known['system']}, Python {known['python']}, {versions}.\n"
        + ("\n**A quick run, whose numbers mean nothing.**\n" if report["quick"] else "")
    )


def markdown_table(benchmark: dict[str, Any]) -> str:
    rows = [row for case in benchmark["cases"] for row in case["candidates"]]
    shown = {key: column for key, column in COLUMNS.items() if any(key in row for row in rows)}
    titles = ["what", "type", "by", *(title for title, _ in shown.values())]
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|" + "---:|" * len(shown)]
    for case in benchmark["cases"]:
        for row in case["candidates"]:
            numbers = [form.format(row[key]) if key in row else "" for key, (_, form) in shown.items()]
            cells = [case["case"], case["dtype"], row["name"], *numbers]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(report: dict[str, Any]) -> str:
    """The part of the page between the comments."""
    parts = [conditions(report), f"### Goals\n\n{table(report)}\n"]
    for benchmark in report["benchmarks"]:
        name, cases = benchmark["benchmark"], benchmark["cases"]
        parts.append(f"### {TITLES[name]}\n")
        products = {kind: _range(cases, kind) for kind in dict.fromkeys(c["dtype"] for c in cases)}
        words = [f"`python examples/benchmarks/{name}.py`. Ratios are to {cases[0]['peer']}."]
        words += [f"A matrix product in {k} reached {v} GFLOP/s beside it." for k, v in products.items() if v]
        parts.append(" ".join(words) + "\n")
        parts.append(markdown_table(benchmark) + "\n")
    return "\n".join(parts)


def _range(cases: list[dict[str, Any]], dtype: str) -> str:
    """Of the speeds of a product, each measured beside its case; "" for none."""
    speeds = [c["matmul_gflops"] for c in cases if c["dtype"] == dtype and c["matmul_gflops"]]
    if not speeds:
        return ""
    lowest, highest = f"{min(speeds):.0f}", f"{max(speeds):.0f}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def replaced(page: str, text: str) -> str:
    """The page with another measured part. ValueError where its comments are not."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have the lines {BEGIN.strip()!r} and {END.strip()!r} once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def _one_of_each(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenVINO, which runs beside the default alone, among the others; without what only approximates."""
    apart = {(c["case"], c["dtype"]): c["candidates"] for c in cases if c["case"].endswith(WITH_OPENVINO)}
    kept = []
    for case in (case for case in cases if not case["case"].endswith(WITH_OPENVINO)):
        others = apart.get((case["case"] + WITH_OPENVINO, case["dtype"]), [])
        rows = [row for row in case["candidates"] if "approximate" not in row["name"]]
        kept.append(case | {"candidates": rows + [row for row in others if row["name"] == "OpenVINO"]})
    return kept


def draw(report: dict[str, Any], path: Path) -> None:
    """A bar for each candidate: its time over the peer's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for b in report["benchmarks"] if b["benchmark"] in IN_THE_PICTURE for case in b["cases"]]
    cases = _one_of_each(cases)
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["candidates"]))
    colours = dict(zip(names, pyplot.get_cmap("tab10").colors))
    labels, places, y = [], [], 0.0
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.17 * sum(len(c["candidates"]) + 1 for c in cases)))
    for case in cases:
        labels.append(f"{case['case']}, {case['dtype']}")
        places.append(y + (len(case["candidates"]) - 1) / 2)
        for row in case["candidates"]:
            axes.barh(y, row["ratio"], color=colours[row["name"]])
            axes.text(row["ratio"], y, f" {row['ratio']:.2f}", va="center", fontsize=7)
            y += 1
        y += 1
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("time over the peer's, less is faster")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    axes.legend(handles, names, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what everything.py wrote")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--figure", type=Path, default=DOCS / "figures" / "performance.png")
    args = parser.parse_args()
    report = json.loads(args.json.read_text(encoding="utf-8"))
    page = replaced(args.page.read_text(encoding="utf-8"), measured(report))
    draw(report, args.figure)
    args.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
