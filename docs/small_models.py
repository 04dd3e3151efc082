"""Draws with the small models of weights/small for docs/models.md: each task at once, on a CPU.

python docs/small_models.py
python docs/small_models.py --originals emoji-data/held-out     first takes other pictures from a data set
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import ldm_core
from ldm_core.images import image_to_tensor, tensor_to_pil
from ldm_core.training import ImageFolder
from ldm_core.watch import make_grid

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
from train_zoo import COLOURS, SIZE, colour_map, shrunk  # noqa: E402

MODELS, FIGURES = ROOT / "weights" / "small", ROOT / "docs" / "figures"
ORIGINALS = FIGURES / "small-originals.png"  # eight pictures of 64 pixels side by side, none of the training
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


def originals() -> Tensor:
    """The pictures (8, 3, 64, 64) in [0, 1]."""
    with Image.open(ORIGINALS) as file:
        strip = image_to_tensor(file)[0]
    return torch.stack(strip.split(SIZE, dim=2))


@torch.no_grad()
def decoded(model: ldm_core.LatentDiffusion, whole: Tensor) -> list[Image.Image]:
    """What the autoencoder makes of the pictures, which no drawn one can surpass."""
    return tensor_to_pil(model.decode_latent(model.encode_image(whole * 2 - 1)) / 2 + 0.5)


def maps() -> Image.Image:
    whole = originals()
    classes = colour_map(shrunk(whole))
    painted = (torch.tensor(COLOURS)[classes] / 255).permute(0, 3, 1, 2)
    draw = sampler("maps", eta=1.0)
    rows = [draw.sample(classes, steps=50, seed=seed) for seed in (0, 10)]
    names = ["original", "autoencoder", "map", "drawn", "drawn again"]
    known = [tensor_to_pil(whole), decoded(draw.model, whole), tensor_to_pil(painted)]
    return make_grid([*known, *rows], rows=names, tile=64)


def upscaler() -> Image.Image:
    whole = originals()
    small = tensor_to_pil(shrunk(whole))
    blocks = [picture.resize((SIZE, SIZE), Image.Resampling.NEAREST) for picture in small]
    smooth = [picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in small]
    draw = sampler("upscaler", eta=1.0)
    drawn = draw.upscale(shrunk(whole), steps=50, seed=0)
    names = ["original", "autoencoder", "16 pixels", "bicubic", "upscaled"]
    known = [tensor_to_pil(whole), decoded(draw.model, whole), blocks, smooth]
    return make_grid([*known, drawn], rows=names, tile=64)


def take_originals(folder: Path) -> None:
    """Eight pictures of a folder, evenly spaced in the order of their names."""
    pictures = ImageFolder(folder, SIZE)
    chosen = [pictures[k * len(pictures) // 8]["image"] for k in range(8)]
    tensor_to_pil(torch.cat(chosen, dim=2)[None] / 2 + 0.5)[0].save(ORIGINALS, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--originals", type=Path, help="a folder of pictures with metadata.jsonl")
    args = parser.parse_args()
    if args.originals:
        take_originals(args.originals)
    for draw in (unconditional, classes, maps, upscaler):
        draw().save(FIGURES / f"small-{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
