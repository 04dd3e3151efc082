"""The walk from noise to a picture, drawn as a strip of pictures or as an animation.

Two pictures belong to a step: the latent as the step leaves it, still noisy, and the picture that the
network expected at that step to arrive at (the x0 of DDIM's equation 12, arXiv:2010.02502). Seen one above
the other they show what sampling is: the guess sharpens while the noise goes.

    recorder = Recorder(model)
    sampler.txt2img("a cat", on_step=recorder)
    recorder.strip().save("strip.png")
    recorder.save_animation("steps.gif")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.conditioners.text import as_prompts
from ldm_core.images import tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.sampler import Sampler, SamplerStep
from ldm_core.support.atomic_files import write_whole
from ldm_core.tasks import Prompt
from ldm_core.watch.grid import grid, stack

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Callable[[Tensor], Tensor]

ANIMATIONS = (".gif", ".webp")


class Recorder:
    """An `on_step` that keeps every step, and draws them afterwards.

    decode: scaled latents (B, C, h, w) to pictures (B, 3, H, W) in [0, 1]; the model's decoder by default.
        A `LatentPreview` is one too, and spares the decoder altogether.
    captions: one for each picture of the batch, to stand above its strip.
    A new run (step 0) begins a new record. The latents are kept on the CPU.
    """

    def __init__(
        self, model: LatentDiffusion, decode: Decode | None = None, captions: Sequence[str] = ()
    ) -> None:
        self.decode: Decode = model_decode(model) if decode is None else decode
        self.captions = tuple(captions)
        self.steps: list[SamplerStep] = []

    def __call__(self, step: SamplerStep) -> None:
        """Keep a step; returns None, so the walk goes on as it would have."""
        if step.index == 0:
            self.steps = []
        self.steps.append(replace(step, latent=_kept(step.latent), x0=_kept(step.x0)))

    def chosen(self, count: int) -> list[SamplerStep]:
        """`count` steps at even distances, the first and the last among them; all, if there are fewer.

        Raises ValueError if nothing has been recorded, or if count is not positive.
        """
        if not self.steps:
            raise ValueError("no step has been recorded: pass the recorder as on_step first")
        if count < 1:
            raise ValueError(f"expected a positive number of steps to show, got {count}")
        last = len(self.steps) - 1
        if count == 1:
            return [self.steps[last]]
        count = min(count, len(self.steps))
        return [self.steps[round(i * last / max(count - 1, 1))] for i in range(count)]

    def strip(self, columns: int = 8, *, tile: int | None = None) -> Image:
        """Noisy latents above predicted pictures, `columns` steps from left to right; a pair of rows for
        each picture of the batch.

        tile: pixels of a picture's longer side in the strip; by default 128 to 256, after the picture.
        """
        steps = self.chosen(columns)
        latents = [self._pictures(step.latent) for step in steps]  # by step, then by picture of the batch
        guesses = [self._pictures(step.x0) for step in steps]
        heads = [f"step {step.index + 1}\nt = {round(step.t, 1)}" for step in steps]
        return stack(
            [
                grid(
                    [[pictures[k] for pictures in latents], [pictures[k] for pictures in guesses]],
                    title=caption,
                    rows=("noisy latent\nafter the step", "prediction\nof the result"),
                    labels=(heads,),
                    tile=tile,
                )
                for k, caption in enumerate(self._captions())
            ]
        )

    def save_animation(
        self,
        path: str | Path,
        *,
        frames: int = 25,
        tile: int | None = None,
        milliseconds: int = 120,
        hold: int = 2000,
    ) -> None:
        """Save the steps as an animation that repeats: `.gif` or `.webp`, by the path's ending.

        frames: at most so many steps, chosen evenly. milliseconds: how long each is shown; hold: how long
        the last. Raises ValueError for another ending, before anything is decoded.
        """
        ending = Path(path).suffix.lower()
        if ending not in ANIMATIONS:
            raise ValueError(f"an animation's name must end in .gif or .webp, not {ending or 'nothing'!r}")
        shown = [self._frame(step, tile) for step in self.chosen(frames)]
        save = partial(
            shown[0].save,
            format=ending[1:],
            save_all=True,
            append_images=shown[1:],
            duration=[milliseconds] * (len(shown) - 1) + [hold],
            loop=0,
        )
        write_whole(Path(os.path.realpath(path)), save)  # what a link points to

    def _frame(self, step: SamplerStep, tile: int | None) -> Image:
        latents, guesses = self._pictures(step.latent), self._pictures(step.x0)
        heads = (
            f"step {step.index + 1} of {step.total}\nt = {round(step.t, 1)}",
            "prediction\nof the result",
        )
        return stack(
            [
                grid([[latents[k], guesses[k]]], title=caption, labels=(heads,), tile=tile)
                for k, caption in enumerate(self._captions())
            ]
        )

    @torch.no_grad()
    def _pictures(self, latent: Tensor) -> list[Image]:
        """One at a time: a decoder's memory is for pictures, not for the batch that was sampled."""
        return tensor_to_pil(torch.cat([self.decode(one) for one in latent.split(1)]))

    def _captions(self) -> tuple[str, ...]:
        count = len(self.steps[0].latent)
        if self.captions and len(self.captions) != count:
            raise ValueError(f"expected one caption per picture ({count}), got {len(self.captions)}")
        return self.captions or ("",) * count


def model_decode(model: LatentDiffusion) -> Decode:
    """The model's decoder in the form that a `Recorder` calls: to pictures in [0, 1] on the CPU."""
    return lambda latent: (model.decode_latent(latent).float().cpu() / 2 + 0.5).clamp(0, 1)


def record(sampler: Sampler, prompt: Prompt, *, decode: Decode | None = None, **options: Any) -> Recorder:
    """Sample for the record: `sampler.steps(prompt, **options)` to the end, with prompts for captions."""
    repeats = options.get("num_images", 1)
    captions = [one for one in as_prompts(prompt) for _ in range(repeats)]
    recorder = Recorder(sampler.model, decode, captions)
    for step in sampler.steps(prompt, **options):
        recorder(step)
    return recorder


def _kept(latent: Tensor) -> Tensor:
    return latent.detach().to("cpu", torch.float32)
