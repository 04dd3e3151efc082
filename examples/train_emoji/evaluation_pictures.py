"""The pictures of an evaluation: 64 prompts, the same as a quiz without words, from noise to image, an
interpolation, guidance × steps, and each sample beside its nearest training picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from emoji_sets import write_whole
from evaluation_data import Question, batches
from PIL import Image
from torch import Tensor

import ldm_core
from ldm_core.images import open_picture, to_rgb
from ldm_core.noise import generators, randn
from ldm_core.watch import make_grid, record_steps

# What people ask an emoji model for: faces, animals, food, activities and objects.
PROMPTS = (
    *("grinning face", "smiling face with sunglasses", "angry face", "crying face", "ghost", "robot"),
    *("red heart", "blue heart", "grinning cat", "dog face", "panda", "tiger face", "lion", "fox", "frog"),
    *("pig face", "cow face", "rabbit face", "monkey face", "chicken", "penguin", "owl", "turtle", "snake"),
    *("octopus", "fish", "whale", "butterfly", "lady beetle", "honeybee", "rose", "sunflower", "cactus"),
    *("evergreen tree", "mushroom", "red apple", "green apple", "banana", "strawberry", "watermelon"),
    *("grapes", "pineapple", "carrot", "pizza", "hamburger", "doughnut", "birthday cake", "soft ice cream"),
    *("hot beverage", "soccer ball", "basketball", "guitar", "trophy", "crown", "light bulb", "key"),
    *("umbrella", "rocket", "automobile", "bicycle", "sailboat", "airplane", "fire", "full moon"),
)
INTERPOLATED, SHOWN_AT_ALL_GUIDANCES = "tiger face", "red apple"
TILE, PAIRS, ROWS = 96, 5, 12  # pixels; pairs in a row and rows of a sheet of neighbours


def draw_sheets(
    model: ldm_core.LatentDiffusion, out: Path, *, steps: int, guidance: float, seed: int, batch_size: int
) -> list[Path]:
    """Draw the sheets that are not there yet, and return the paths of all."""
    sampler = ldm_core.Sampler(model, batch_size=batch_size)
    options = {"steps": steps, "guidance_scale": guidance}

    @cache
    def pictures() -> list[Image.Image]:
        return sampler.txt2img(list(PROMPTS), seed=seed, **options)

    sheets = {
        "prompts.png": lambda: make_grid(list(batches(pictures(), 8)), labels=list(batches(PROMPTS, 8))),
        "quiz.png": lambda: quiz_sheet(pictures(), out / "quiz.txt", seed),
        "strip.png": lambda: record_steps(sampler, INTERPOLATED, seed=seed, **options).strip(),
        "interpolation.png": lambda: interpolation_sheet(sampler, seed, options),
        "guidance-steps.png": lambda: guidance_sheet(sampler, seed, steps),
    }
    for name, sheet in sheets.items():
        if not (out / name).exists():
            save(sheet(), out / name)
    return [out / name for name in sheets]


def quiz_sheet(pictures: Sequence[Image.Image], answers: Path, seed: int) -> Image.Image:
    """The 64 prompts' pictures in a random order, numbered, for somebody who does not know what was asked.

    Which is which goes into the file `answers`.
    """
    order = list(range(len(pictures)))
    random.Random(seed).shuffle(order)
    numbers = [str(k + 1) for k in range(len(order))]
    lines = [f"{number} {PROMPTS[place]}\n" for number, place in zip(numbers, order)]
    write_whole(answers, "".join(lines).encode())
    return make_grid(list(batches([pictures[place] for place in order], 8)), labels=list(batches(numbers, 8)))


def interpolation_sheet(
    sampler: ldm_core.Sampler, seed: int, options: dict[str, Any], count: int = 8
) -> Image.Image:
    """One prompt, and initial noise on the arc between two draws, along which its amount stays the same."""
    config = sampler.model.config
    size = config.image_size // config.autoencoder.downsampling
    a, b = randn((2, config.unet.out_channels, size, size), generators([seed, seed + 1]))
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    weights = [k / (count - 1) for k in range(count)]
    noise: Tensor = torch.stack(
        [(torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle) for w in weights]
    )
    pictures = sampler.txt2img(INTERPOLATED, noise=noise, num_images=count, **options)
    return make_grid([pictures], title=INTERPOLATED, labels=[[f"{w:.2f}" for w in weights]])


def guidance_sheet(sampler: ldm_core.Sampler, seed: int, most: int) -> Image.Image:
    """One prompt and one seed: guidance from row to row, steps from column to column."""
    scales = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
    counts = sorted({max(1, most * share // 25) for share in (2, 5, 10, 15, 25, 50)})
    rows = [
        [sampler.txt2img(SHOWN_AT_ALL_GUIDANCES, steps=n, guidance_scale=scale, seed=seed)[0] for n in counts]
        for scale in scales
    ]
    names = [f"guidance {scale:g}" for scale in scales]
    return make_grid(rows, title=SHOWN_AT_ALL_GUIDANCES, rows=names, labels=[[f"{n} steps" for n in counts]])


def neighbour_sheets(
    out: Path,
    name: str,
    questions: Sequence[Question],
    samples: Sequence[Path],
    nearest: Sequence[tuple[Path, str, float]],
) -> list[Path]:
    """Each sample and, to its right, its nearest training picture: sheets of sixty, in their order."""
    paths = []
    triples = list(zip(questions, samples, nearest))
    for number, sheet in enumerate(batches(triples, PAIRS * ROWS), 1):
        rows, labels = [], []
        for row in batches(sheet, PAIRS):
            rows.append(
                [
                    to_rgb(open_picture(path))
                    for _, sample, (neighbour, _, _) in row
                    for path in (sample, neighbour)
                ]
            )
            labels.append(
                [
                    text
                    for question, _, (_, concept, cosine) in row
                    for text in (question.prompt, f"{concept.replace('-', ' ')}\n{cosine:.3f}")
                ]
            )
        path = out / f"{name}-{number}.png"
        save(make_grid(rows, title="drawn, and the nearest training picture", labels=labels, tile=TILE), path)
        paths.append(path)
    return paths


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, "PNG")
    partial.replace(path)
