"""Samplers and their settings compared: errors over network calls, and sheets of pictures.

measured = solver_errors(model, {"DDIM": DDIM(), "UniPC": UniPC()}, ["panda"])
plot_errors(measured).savefig("errors.png")
guidance_sheet(sampler, "panda", scales=(1, 4, 8), steps=(5, 10, 25)).save("sheet.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm_core.model import LatentDiffusion
from ldm_core.sampler import Sampler
from ldm_core.schedulers import DDIM, PNDM, Heun
from ldm_core.watch.grid import make_grid

if TYPE_CHECKING:
    from PIL.Image import Image

CALLS = (5, 7, 10, 15, 25, 50)


def steps_for(scheduler: Any, calls: int) -> tuple[int, int]:
    """(steps, the calls that they make): the most steps that stay within `calls` calls of the network."""
    if isinstance(scheduler, Heun):
        return (calls + 1) // 2, (calls + 1) // 2 * 2 - 1
    if isinstance(scheduler, PNDM):
        return calls - 1, calls
    return calls, calls


def solver_errors(
    model: LatentDiffusion,
    schedulers: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    calls: Sequence[int] = CALLS,
    guidance_scale: float = 4.0,
    seeds: Sequence[int] | None = None,
    reference_steps: int = 1000,
) -> dict[str, list[tuple[int, float]]]:
    """By name, pairs (network calls, root mean square error of the final latents).

    The error is the distance from the solution of the probability-flow ODE, which DDIM approximates in
    `reference_steps` steps; so schedulers that draw noise in each step do not belong here.

    seeds: one for each prompt; 1, 2, … by default. calls: about as many calls of the network each.
    """
    seeds = list(range(1, len(prompts) + 1)) if seeds is None else list(seeds)

    def latents(scheduler: Any, steps: int) -> Tensor:
        final: Tensor = Sampler(model, scheduler).txt2img(
            list(prompts), steps=steps, guidance_scale=guidance_scale, seed=seeds, output="latent"
        )
        return final

    solution = latents(DDIM(spacing="linspace", set_alpha_to_one=True), reference_steps)
    measured: dict[str, list[tuple[int, float]]] = {}
    for name, scheduler in schedulers.items():
        measured[name] = []
        for steps, made in (steps_for(scheduler, count) for count in calls):
            difference = latents(scheduler, steps) - solution
            measured[name].append((made, float(difference.square().mean().sqrt())))
    return measured


def guidance_sheet(
    sampler: Sampler,
    prompt: str,
    *,
    scales: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    steps: Sequence[int] = (5, 10, 25),
    seed: int = 0,
    tile: int | None = None,
    **options: Any,
) -> Image:
    """Pictures of one prompt and seed: a row for each guidance scale, a column for each number of steps.

    options: other arguments of `txt2img`. tile: the longer side of a picture in pixels.
    """
    if not scales or not steps:
        raise ValueError("expected at least one guidance scale and one number of steps")
    pictures = [
        [
            sampler.txt2img(prompt, steps=count, guidance_scale=scale, seed=seed, **options)[0]
            for count in steps
        ]
        for scale in scales
    ]
    labels = [[f"{count} steps" for count in steps]]
    return make_grid(
        pictures, title=prompt, rows=[f"{scale:g}" for scale in scales], labels=labels, tile=tile
    )
