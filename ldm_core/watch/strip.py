"""The steps of a sampling run as a strip of images or as an animation.

Each step gives two images: the noisy latent after the step, and the step's prediction of the final image (the
predicted x0 of DDIM, arXiv:2010.02502, equation 12).

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
from ldm_core.task_types import Prompt
from ldm_core.watch.grid import make_grid, stack

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Callable[[Tensor], Tensor]

ANIMATIONS = (".gif", ".webp")


class Recorder:
    """An `on_step` callback that records every step, to draw them afterwards.

    decode: from scaled latents (B, C, h, w) to images (B, 3, H, W) in [0, 1]; by default the model's decoder.
        A `LatentPreview` is much faster.
    captions: one per image of the batch, drawn above its strip.

    Step 0 of another run discards the recorded steps. Latents are kept on the CPU.
    """

    def __init__(
        self, model: LatentDiffusion, decode: Decode | None = None, captions: Sequence[str] = ()
    ) -> None:
        self.decode: Decode = model_decode(model) if decode is None else decode
        self.captions = tuple(captions)
        self.steps: list[SamplerStep] = []

    def __call__(self, step: SamplerStep) -> None:
        """Record a step. Returns None, so that the latent stays as it is."""
        if step.index == 0:
            self.steps = []
        self.steps.append(replace(step, latent=_kept(step.latent), x0=_kept(step.x0)))

    def chosen(self, count: int) -> list[SamplerStep]:
        """`count` evenly spaced steps, including the first and the last; all of them if there are fewer.

        Raises ValueError if nothing has been recorded or `count` < 1.
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
        """Draw `columns` steps from left to right: for each image of the batch, a row of noisy latents and a
        row of predicted images.

        tile: the longer side of an image in pixels; by default its own, clamped to 128..256.
        """
        steps = self.chosen(columns)
        latents = [self._pictures(step.latent) for step in steps]  # by step, then by image of the batch
        guesses = [self._pictures(step.x0) for step in steps]
        heads = [f"step {step.index + 1}\nt = {round(step.t, 1)}" for step in steps]
        return stack(
            [
                make_grid(
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
        """Save the steps as a looping animation.

        path: ends in `.gif` or `.webp`. frames: how many steps to show, evenly spaced. tile: as in `strip`.
        milliseconds: duration of a frame. hold: duration of the last frame in milliseconds.
        Raises ValueError for another file extension, before anything is decoded.
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
        write_whole(Path(os.path.realpath(path)), save)  # replaces the file that a link points to

    def _frame(self, step: SamplerStep, tile: int | None) -> Image:
        latents, guesses = self._pictures(step.latent), self._pictures(step.x0)
        heads = (
            f"step {step.index + 1} of {step.total}\nt = {round(step.t, 1)}",
            "prediction\nof the result",
        )
        return stack(
            [
                make_grid([[latents[k], guesses[k]]], title=caption, labels=(heads,), tile=tile)
                for k, caption in enumerate(self._captions())
            ]
        )

    @torch.no_grad()
    def _pictures(self, latent: Tensor) -> list[Image]:
        """Images of latents, decoded one by one so that the decoder needs the memory of a single image."""
        return tensor_to_pil(torch.cat([self.decode(one) for one in latent.split(1)]))

    def _captions(self) -> tuple[str, ...]:
        count = len(self.steps[0].latent)
        if self.captions and len(self.captions) != count:
            raise ValueError(f"expected one caption per picture ({count}), got {len(self.captions)}")
        return self.captions or ("",) * count


def model_decode(model: LatentDiffusion) -> Decode:
    """The model's decoder as `Recorder` calls it: scaled latents to images in [0, 1], float32, on the CPU."""
    return lambda latent: (model.decode_latent(latent).float().cpu() / 2 + 0.5).clamp(0, 1)


def record_steps(
    sampler: Sampler, prompt: Prompt, *, decode: Decode | None = None, **options: Any
) -> Recorder:
    """Run `sampler.steps(prompt, **options)` and record every step, with the prompts as captions."""
    repeats = options.get("num_images", 1)
    captions = [one for one in as_prompts(prompt) for _ in range(repeats)]
    recorder = Recorder(sampler.model, decode, captions)
    for step in sampler.steps(prompt, **options):
        recorder(step)
    return recorder


def _kept(latent: Tensor) -> Tensor:
    return latent.detach().to("cpu", torch.float32)
