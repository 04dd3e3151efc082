"""How well the held-out emoji are rebuilt: by principal components of their patches, and by a run's network.

    python docs/emoji.py emoji-data
    python docs/emoji.py emoji-data --run runs             (the autoencoder as it was last saved)
    python docs/emoji.py emoji-data --run runs --curves    (how the stages' losses fell)
    python docs/emoji.py emoji-data --cost                 (a U-Net's step on 16x16x4 latents against 8x8x16)

A network of as many numbers in a latent has to beat the linear one. Prints PSNR in dB, and SSIM.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm_core.training import ImageFolder, load_weights
from ldm_core.training.metrics import psnr, ssim
from ldm_core.unet import UNet

LATENTS = ((16, 16), (8, 4))  # (pixels of a patch's side, components): 8x8x16 and 16x16x4 for 128 pixels
EVERY = 10  # of the training pictures; more change the second decimal
CURVES = {
    "autoencoder": "mse",
    "evaluator": "found",
    "clip": "found",
    "diffusion": "error",
    "further": "error",
    "decoder": "mse",
}
POINTS = 8


def patches(folder: Path, size: int, side: int, every: int = 1) -> np.ndarray:
    """(pictures, patches, side * side * 3), of values in [0, 1]."""
    samples = ImageFolder(folder, size, captions=False)
    pictures = np.stack([samples[k]["image"].numpy() / 2 + 0.5 for k in range(0, len(samples), every)])
    n, channels, rows, columns = pictures.shape
    cut = pictures.reshape(n, channels, rows // side, side, columns // side, side)
    return cut.transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, side * side * channels)


def linear_psnr(data: Path, size: int, side: int, components: int) -> float:
    train = patches(data / "train", size, side, EVERY).reshape(-1, side * side * 3)
    mean = train.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(train - mean, rowvar=False))
    basis = vectors[:, -components:]
    unseen = patches(data / "held-out", size, side) - mean
    errors = ((unseen - unseen @ basis @ basis.T) ** 2).mean(axis=(1, 2))
    return float((-10 * np.log10(errors)).mean())


def recipe() -> Any:
    """The module `train` of the example."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "train_emoji"))
    import train

    return train


@torch.no_grad()
def network_scores(data: Path, run: Path, every: int, factor: int) -> tuple[float, float]:
    """PSNR and SSIM of a run's autoencoder with its averaged weights, means over every so many pictures."""
    train = recipe()
    autoencoder = train.new_autoencoder(train.MODELS[factor].autoencoder)
    load_weights(train.autoencoder_objective(autoencoder), run / "autoencoder" / "state.safetensors")
    unseen = ImageFolder(data / "held-out", autoencoder.config.resolution, captions=False)
    scores = []
    for k in range(0, len(unseen), every):
        image = unseen[k]["image"][None]
        again = autoencoder.decode(autoencoder.encode(image).mode()).clamp(-1, 1)
        pair = again / 2 + 0.5, image / 2 + 0.5
        scores.append((float(psnr(*pair)), float(ssim(*pair))))
    means = np.mean(scores, axis=0)
    return float(means[0]), float(means[1])


def cost_of_a_step(batch: int = 16, rounds: int = 5) -> float:
    """How many times as long a U-Net's gradients take on latents of an eighth as on those of a sixteenth."""
    models = recipe().MODELS
    times: dict[int, list[float]] = {factor: [] for factor in models}
    networks = {factor: UNet(model.unet) for factor, model in models.items()}
    context = torch.randn(batch, 77, 128)
    for _ in range(rounds + 1):  # the first warms up
        for factor, unet in networks.items():
            x = torch.randn(batch, unet.config.in_channels, 128 // factor, 128 // factor)
            start = time.perf_counter()
            unet(x, torch.randint(1000, (batch,)), context).square().mean().backward()
            times[factor].append(time.perf_counter() - start)
    return float(np.median(np.divide(times[8][1:], times[16][1:])))


def curve(metrics: Path, column: str) -> str:
    """A column of a stage's metrics.csv as a table: means over equal stretches, under their last steps."""
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row[column])) for row in csv.DictReader(file)]
    stretches = np.array_split(np.array(rows), min(POINTS, len(rows)))
    lines = (
        ["step", *(f"{stretch[-1, 0]:.0f}" for stretch in stretches)],
        ["---", *["---:"] * len(stretches)],
        [column, *(f"{stretch[:, 1].mean():.3g}" for stretch in stretches)],
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--run", type=Path, help="what train.py was given as RUNS")
    parser.add_argument("--every", type=int, default=1, help="of the held-out pictures, with --run")
    parser.add_argument("--curves", action="store_true", help="with --run: how its losses fell")
    parser.add_argument("--factor", type=int, choices=[8, 16], default=16, help="of the run's autoencoder")
    parser.add_argument("--cost", action="store_true", help="of a training step, by factor")
    args = parser.parse_args()
    if args.curves and args.run is None:
        parser.error("--curves needs --run")
    if args.cost:
        print(f"a step of the U-Net: {cost_of_a_step():.1f} × as long with f=8 as with f=16")
        sys.exit()
    if args.curves:
        for stage, column in CURVES.items():
            if (args.run / stage / "metrics.csv").exists():
                print(f"{stage}\n\n{curve(args.run / stage / 'metrics.csv', column)}\n")
        sys.exit()
    if args.run is not None:
        scores = network_scores(args.data, args.run, args.every, args.factor)
        print("the run's: {:.1f} dB, SSIM {:.3f}".format(*scores))
        sys.exit()
    for side, components in LATENTS:
        linear = linear_psnr(args.data, args.size, side, components)
        print(f"{components} components of {side}x{side} patches: {linear:.1f} dB")
