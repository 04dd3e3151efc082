"""DreamBooth: binds a subject to a rare word and preserves its class (arXiv:2208.12242).

    L = E [ w_t || x_theta(z_t, c) - x ||^2  +  lambda w_t' || x_theta(z'_t', c_pr) - x_pr ||^2 ]

Ruiz et al. 2023, equation 2: x is an image of the subject with the caption c = "a [V] dog"; x_pr is an image
of the class that the model sampled before training for the prompt c_pr = "a dog" (section 3.3). Each term has
its own timestep and noise. CompVis has no counterpart.

    class_data = class_images(model, "a dog", "class", 100)
    subject = CaptionedDataset(ImageFolder("dog", 512, captions=False), "a sks dog")
    objective = PriorPreservation(DiffusionObjective(model, condition_dropout=0))     # or of a LoRA
    Trainer(objective, PriorDataset(subject, class_data), "runs/dog", settings).run()
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.writer import write_bytes, write_then_move
from ldm_core.images import ENDINGS
from ldm_core.model import LatentDiffusion
from ldm_core.sampler import Sampler
from ldm_core.support.printable import shown
from ldm_core.training.dataset import CaptionedDataset, Dataset, Sample, collate
from ldm_core.training.image_folder import ImageFolder
from ldm_core.training.objective import Batch, Metrics, Objective

NOTE = "class.json"  # in a folder of class images: their prompt


class PriorPreservation(Objective):
    """The loss of another objective plus `weight` times its loss on class images: equation 2.

    Batches come from a `PriorDataset`. weight: lambda, 1 in the paper.
    """

    def __init__(self, objective: Objective, weight: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight must be a finite number of 0 or more, not {weight}")
        self.objective, self.weight = objective, weight

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """The subject's loss plus `weight` times the class's, and both as metrics."""
        subject, metrics = self.objective.loss(batch, generators, step)
        prior, _ = self.objective.loss(collate(batch["prior"]), generators, step)
        return subject + self.weight * prior, {
            **metrics,
            "subject": subject.detach(),
            "prior": prior.detach(),
        }

    def networks(self) -> list[nn.Module]:
        """Those of the other objective."""
        return self.objective.networks()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the other objective."""
        return self.objective.parameter_groups()


class PriorDataset:
    """Pairs images of a subject with images of its class. The shorter of the two datasets is repeated."""

    def __init__(self, subject: Dataset, prior: Dataset) -> None:
        for what, dataset in (("subject", subject), ("prior", prior)):
            if len(dataset) == 0:
                raise ValueError(f"expected at least one image in the {what} dataset, got none")
        self.subject, self.prior = subject, prior

    @property
    def fingerprint(self) -> str:
        """A string that changes when the images change."""
        both = self.subject.fingerprint, self.prior.fingerprint
        return hashlib.sha256(repr(both).encode()).hexdigest()

    def __len__(self) -> int:
        return max(len(self.subject), len(self.prior))

    def __getitem__(self, index: int) -> Sample:
        return self.subject[index % len(self.subject)] | {"prior": self.prior[index % len(self.prior)]}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of the subject's image, without reading it."""
        return self.subject.text(index % len(self.subject))


def class_images(
    model: LatentDiffusion,
    prompt: str,
    folder: str | Path,
    count: int,
    *,
    steps: int = 25,
    guidance_scale: float = 4.0,
    seed: int = 0,
    batch_size: int = 8,
) -> CaptionedDataset:
    """A folder of at least `count` class images, captioned `prompt`; the model samples the missing ones.

    Call this before training. Images already in the folder count, including your own. Image k is sampled with
    `seed` + k, so that an interrupted call can be repeated. Raises ValueError if `count` < 1 or the folder's
    images belong to another prompt.
    """
    folder = Path(folder)
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    folder.mkdir(parents=True, exist_ok=True)
    _note(folder / NOTE, prompt)
    existing = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
    names = (folder / f"class-{k:05d}.png" for k in range(2 * count))
    missing = max(0, count - len(existing))
    free = [(k, path) for k, path in enumerate(names) if path not in existing][:missing]
    sampler = Sampler(model)
    for first in range(0, len(free), batch_size):
        part = free[first : first + batch_size]
        images = sampler.txt2img(
            [prompt] * len(part),
            steps=steps,
            guidance_scale=guidance_scale,
            seed=[seed + k for k, _ in part],
        )
        for image, (_, path) in zip(images, part):
            write_then_move(path, partial(image.save, format="PNG"))
    return CaptionedDataset(ImageFolder(folder, model.config.image_size, captions=False), prompt)


def _note(path: Path, prompt: str) -> None:
    """Save the prompt of a folder's images, or compare it with the saved one."""
    if not path.exists():
        write_bytes(path, json.dumps({"prompt": prompt}).encode())
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the prompt of the folder's images ({error})") from error
    if saved != prompt:
        raise ValueError(
            f"{path.parent}: its images have the prompt {shown(saved)}, not {prompt!r}: use another folder"
        )
