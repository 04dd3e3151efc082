"""The drawing commands: they draw pictures in chunks and write each picture as soon as its chunk is done.

Each picture has its own seed, so the size of the chunks does not change the pictures.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ldm_core.cli.kinds import joined, kind_of
from ldm_core.cli.plan import Job, prepare
from ldm_core.cli.printing import EXIT_FAILED, EXIT_INTERRUPTED, print_path, tell
from ldm_core.images import tensor_to_pil
from ldm_core.recipe import Recipe
from ldm_core.sampler import SamplerStep
from ldm_core.watch.strip import Recorder

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(args: Namespace) -> int:
    """Draw all pictures of a command line and return the exit status."""
    job = prepare(args)
    total, done, black = len(job.recipes), 0, 0
    try:
        with Progress(total, args.batch_size, quiet=args.quiet) as progress:
            for start in range(0, total, args.batch_size):
                chunk = slice(start, start + args.batch_size)
                recipes = job.recipes[chunk]
                recorder = Recorder(job.sampler.model) if args.show_steps else None
                for k, image in enumerate(_draw_chunk(job, chunk, progress, recorder)):
                    not_finite = image.info.get("not_finite")
                    path = job.output.save(image, replace(recipes[k], not_finite=not_finite))
                    done += 1
                    black += not_finite is not None
                    print_path(path)
                    if recorder is not None:
                        _save_steps(job, recorder, k, path, _caption(recipes[k]))
    except KeyboardInterrupt:
        tell(f"interrupted; {done} of {total} pictures are complete and kept")
        return EXIT_INTERRUPTED
    if black:
        tell(f"error: {black} of {total} pictures have NaN or infinity in their latents")
        return EXIT_FAILED
    return 0


def _draw_chunk(job: Job, chunk: slice, progress: Progress, recorder: Recorder | None) -> list[Image]:
    """The pictures of a chunk, whose recipes differ only in their inputs and seeds."""

    def on_step(step: SamplerStep) -> None:
        if recorder is not None:
            recorder(step)
        progress.update(step)

    recipes, recipe = job.recipes[chunk], job.recipes[0]
    inputs, per_input = joined(job.inputs[chunk])
    takes_text = kind_of(job.sampler.model.conditioner).takes_text
    negatives = [r.negative_prompt for r in recipes] if takes_text else None
    options: dict[str, Any] = {
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "seed": [r.seed for r in recipes],
        "on_step": on_step,
    }
    if recipe.task == "upscale":
        small = [one["image"] if isinstance(one, Mapping) else one for one in job.inputs[chunk]]
        if takes_text:
            options |= {"prompt": [r.prompt for r in recipes], "noise_level": recipe.noise_level}
        return job.sampler.upscale(small, negative_prompt=negatives or "", **options)
    return job.sampler.sample(
        inputs,
        unconditional=negatives,
        image=job.pictures.image,
        mask=job.pictures.mask,
        strength=1.0 if recipe.strength is None else recipe.strength,
        height=recipe.height,
        width=recipe.width,
        num_images=per_input,
        **job.controls,
        **options,
    )


def _caption(recipe: Recipe) -> str:
    return recipe.prompt or ("" if recipe.class_label is None else f"class {recipe.class_label}")


def _save_steps(job: Job, recorder: Recorder, k: int, picture: Path, caption: str) -> None:
    """Save the k-th picture of a chunk after every step, and a strip of all its steps."""
    alone = Recorder(job.sampler.model, captions=[caption])
    for step in recorder.steps:
        alone(replace(step, latent=step.latent[k : k + 1], x0=step.x0[k : k + 1]))
    with torch.no_grad():
        frames = [tensor_to_pil(alone.decode(step.x0))[0] for step in alone.steps]
    for path in job.output.save_steps(picture, frames, alone.strip()):
        print_path(path)


class Progress:
    """A progress bar with one tick per step of a chunk, if standard error is a terminal."""

    def __init__(self, pictures: int, batch_size: int, *, quiet: bool) -> None:
        self._chunks = math.ceil(pictures / batch_size)
        self._bar = tqdm(unit="step", disable=True if quiet else None, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, step: SamplerStep) -> None:
        self._bar.total = step.total * self._chunks
        self._bar.update()
