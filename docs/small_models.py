"""Draws with the small models of weights/small for docs/models.md: each task at once, on a CPU.

python docs/small_models.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid

ROOT = Path(__file__).parents[1]
MODELS, FIGURES = ROOT / "weights" / "small", ROOT / "docs" / "figures"
CLASSES = ("activities", "animals", "food", "new", "objects", "people", "smileys", "symbols", "travel")


def sampler(name: str, eta: float = 0.0) -> ldm_core.Sampler:
    return ldm_core.Sampler(ldm_core.load(MODELS / f"{name}.safetensors"), ldm_core.DDIM(eta=eta))


def unconditional() -> Image.Image:
    pictures = sampler("unconditional", eta=1.0).sample(num_images=24, steps=100, seed=0)
    return make_grid([pictures[:12], pictures[12:]], tile=64)


def classes() -> Image.Image:
    draw = sampler("classes")
    columns = [k for k, name in enumerate(CLASSES) if name != "new"]
    rows = [draw.sample(columns, guidance_scale=3, steps=50, seed=seed) for seed in range(0, 40, 10)]
    return make_grid(rows, labels=[[CLASSES[k] for k in columns], *[[""] * len(columns)] * 3], tile=64)


def main() -> None:
    for draw in (unconditional, classes):
        draw().save(FIGURES / f"small-{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
