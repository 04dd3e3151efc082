"""Draw figures/solvers.png, and write the table of "Fewer steps" into schedulers.md.

    python docs/solvers.py

The error of each scheduler's final latents against the solution of the probability-flow ODE, over the number
of network calls: the bundled model, guidance 4, three prompts with one seed each. The solution is
approximated by DDIM with 1,000 steps, one for each training timestep, which takes a while for each image.
Ancestral methods solve a stochastic equation and are excluded. Needs matplotlib (the `docs` extra).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ldm_core
from ldm_core import DDIM, LMS, PNDM, DPMSolverMultistep, Euler, Heun, LatentDiffusion, UniPC
from ldm_core.watch.comparison import CALLS, solver_errors

HERE = Path(__file__).parent
PROMPTS, SEEDS = ["panda", "fire", "red apple"], [1, 2, 3]
SCHEDULERS: dict[str, Any] = {
    "DDIM": DDIM(),
    "PNDM (PLMS)": PNDM(),
    "DDIM, trailing": DDIM(spacing="trailing", set_alpha_to_one=True),
    "Euler, Karras": Euler(spacing="karras"),
    "LMS, Karras": LMS(spacing="karras"),
    "Heun, Karras": Heun(spacing="karras"),
    "DPM++ 2M": DPMSolverMultistep(),
    "DPM++ 2M, Karras": DPMSolverMultistep(spacing="karras"),
    "UniPC": UniPC(),
    "UniPC, Karras": UniPC(spacing="karras"),
}
STYLES = {"DDIM": "s", "PNDM": "s", "Euler": "^", "LMS": "^", "Heun": "^", "DPM++": "o", "UniPC": "D"}


def errors(
    model: LatentDiffusion,
    schedulers: dict[str, Any] = SCHEDULERS,
    counts: Sequence[int] = CALLS,
    reference_steps: int = 1000,
) -> dict[str, list[tuple[int, float]]]:
    """By name, the pairs (network calls, RMS error); the latents have a standard deviation of about 1."""
    return solver_errors(
        model, schedulers, PROMPTS, calls=counts, seeds=SEEDS, reference_steps=reference_steps
    )


def table(measured: dict[str, list[tuple[int, float]]], counts: Sequence[int] = CALLS) -> str:
    """The rows that docs/schedulers.md shows."""
    rows = ["| calls | " + " | ".join(map(str, counts)) + " |", "|---|" + "---|" * len(counts)]
    for name, points in measured.items():
        rows.append(f"| {name} | " + " | ".join(f"{error:.3f}" for _, error in points) + " |")
    return "\n".join(rows)


def write_table(page: Path, rows: str) -> None:
    """Put the rows between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- solvers -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{page} has no lines <!-- solvers --> and <!-- end -->")
    page.write_text(marked.sub(lambda match: match[1] + rows + match[2], text), encoding="utf-8")


def draw(measured: dict[str, list[tuple[int, float]]], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for name, points in measured.items():
        style = next(marker for start, marker in STYLES.items() if name.startswith(start))
        dashed = "--" if "Karras" not in name else "-"
        axes.loglog(*zip(*points), style + dashed, label=name, markersize=5, linewidth=1.5)
    axes.set(
        xlabel="network calls",
        ylabel="RMS error of the final latents",
        title="Distance from the 1,000-step solution (bundled model, guidance 4)",
        xticks=CALLS,
        xticklabels=[str(count) for count in CALLS],
    )
    axes.minorticks_off()
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=HERE / "figures" / "solvers.png")
    parser.add_argument("--page", type=Path, default=HERE / "schedulers.md")
    arguments = parser.parse_args()
    measured = errors(ldm_core.load(device="cpu"))
    draw(measured, arguments.figure)
    write_table(arguments.page, table(measured))


if __name__ == "__main__":
    main()
