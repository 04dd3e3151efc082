"""The prepared pictures as samples: with all their captions, and what people ask for first more often.

Only a batch's order is random in the loop, so a picture's share is how many places it has in the data set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from emoji_captions import all_captions
from torch import Tensor

from ldm_core.training import ImageFolder
from ldm_core.training.dataset import Dataset, Sample
from ldm_core.training.objective import uniform


class EmojiPictures(ImageFolder):
    """A split's folder as `prepare.py` leaves it, as squares of `size` pixels.

    common    for each sample, whether its concept is one that people ask for first
    """

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder, size)
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = {row["file_name"]: row for row in map(json.loads, lines)}
        self.texts = [all_captions(rows[name]) for name in self.names]
        self.common = [bool(rows[name]["common"]) for name in self.names]


class Repeated:
    """Samples of which some come several times: sample k has `times[k]` places, one after another."""

    def __init__(self, samples: Dataset, times: list[int]) -> None:
        if len(times) != len(samples):
            raise ValueError(f"expected how often each of {len(samples)} samples comes, got {len(times)}")
        self.samples = samples
        self.places = [k for k, count in enumerate(times) for _ in range(count)]

    @property
    def fingerprint(self) -> str:
        return self.samples.fingerprint

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[self.places[index]]

    def text(self, index: int) -> tuple[str, ...]:
        return self.samples.text(self.places[index])


def worn(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] a little moved, scaled, blurred and noisy: drawn ones are no better.

    What judges pictures must look past the faults of a small model, and clean artwork has none.
    """
    n, _, height, width = images.shape
    scale, right, down = (uniform(generators).to(images) * 2 - 1 for _ in range(3))  # in [-1, 1)
    transform = torch.zeros(n, 2, 3).to(images)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.15 * scale
    transform[:, 0, 2], transform[:, 1, 2] = 0.1 * right, 0.1 * down
    grid = torch.nn.functional.affine_grid(transform, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    blurred = torch.nn.functional.avg_pool2d(moved, 5, stride=1, padding=2, count_include_pad=False)
    share = uniform(generators).to(images)[:, None, None, None]
    strength = uniform(generators).to(images)[:, None, None, None] * 0.06
    noise = torch.stack([torch.randn(3, height // 4, width // 4, generator=stream) for stream in generators])
    coarse = torch.nn.functional.interpolate(noise.to(images), (height, width), mode="bilinear")
    return (moved + share * (blurred - moved) + strength * coarse).clamp(0, 1)
