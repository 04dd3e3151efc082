"""Plots of the bundled model's schedule, latents, attention and samplers, and a sheet of guidance scales.

    python examples/plots.py plots/

Needs matplotlib (`pip install ldm_core[plot]`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ldm_core
from ldm_core import DDIM, Sampler, UniPC, watch
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig

PROMPT, TOKENS = "red apple, fluent emoji", ["red", "apple", ",", "fluent", "emoji"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    model = ldm_core.load()
    sampler = Sampler(model)
    with ldm_core.record_attention(model, where="attn2") as maps:
        steps = list(sampler.steps(PROMPT, steps=args.steps, guidance_scale=4, seed=0))
    schedules = {
        "Stable Diffusion": NoiseSchedule(NoiseScheduleConfig()),
        "cosine": NoiseSchedule(NoiseScheduleConfig(beta_schedule="cosine")),
        "zero terminal SNR": NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=True)),
    }
    errors = watch.solver_errors(
        model,
        {"DDIM": DDIM(), "UniPC, Karras": UniPC(spacing="karras")},
        ["fire"],
        calls=(max(2, args.steps // 5), max(3, args.steps // 2)),
        reference_steps=4 * args.steps,
    )
    figures = {
        "schedules": watch.plot_schedules(schedules),
        "statistics": watch.plot_statistics(steps),
        "tokens": watch.plot_token_attention(maps, TOKENS),
        "errors": watch.plot_errors(errors),
    }
    for name, figure in figures.items():
        figure.savefig(args.folder / f"{name}.png", dpi=80)
    sheet = watch.guidance_sheet(sampler, "red apple", steps=(5, 10, args.steps), tile=96)
    sheet.save(args.folder / "guidance-sheet.png")
    print("saved 5 pictures")


if __name__ == "__main__":
    main()
