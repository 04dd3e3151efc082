"""A scheduler of one's own: DPM-Solver++(2M) in 20 lines, checked, and compared with DDIM at few steps.

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling" (arXiv:2211.01095), algorithm 2. It needs one
network call a step, as DDIM does, and remembers the last x0; what it remembers goes out and comes in again
as `history`, so that a step can be replayed.
"""

from __future__ import annotations

import argparse
import math

from torch import Tensor

import ldm_core
from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers import Step, spaced_pairs
from ldm_core.testing import check_scheduler
from ldm_core.watch import make_grid

History = tuple[Tensor, float] | None


class DPMSolver2M:
    """Second order in h, the stride of lambda = log(a_t / s_t); the last step goes to the predicted x0."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[int, int]]:
        return spaced_pairs(len(schedule), n, "trailing")

    def step(
        self, predict: Predict, x: Tensor, t: int, t_prev: int, history: History, noise: Tensor | None
    ) -> Step:
        x0 = predict(x, t).x0
        if t_prev == -1:
            return Step(x0, x0)
        (a, s), (a_prev, s_prev) = (predict.schedule.signal_and_noise(u) for u in (t, t_prev))
        h = math.log(a_prev / s_prev) - math.log(a / s)
        mixed = x0
        if history is not None:
            x0_before, h_before = history
            mixed = x0 + h / (2 * h_before) * (x0 - x0_before)
        return Step(s_prev / s * x - a_prev * math.expm1(-h) * mixed, x0, (x0, h))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="swapped_scheduler.png")
    parser.add_argument("--prompt", default="grinning cat")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 9, 15, 25])
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    check_scheduler(DPMSolver2M(), stochastic=False)
    model = ldm_core.load()
    rows, labels = [], []
    for scheduler in (ldm_core.DDIM(spacing="trailing", set_alpha_to_one=True), DPMSolver2M()):
        sampler = ldm_core.Sampler(model, scheduler)
        options = {"guidance_scale": args.guidance, "seed": args.seed}
        rows.append([sampler.txt2img(args.prompt, steps=n, **options)[0] for n in args.steps])
        labels.append([f"{type(scheduler).__name__}\n{n} steps" for n in args.steps])
    make_grid(rows, title=args.prompt, labels=labels).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
