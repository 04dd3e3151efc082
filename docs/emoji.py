"""How well the emoji are rebuilt by a linear autoencoder: principal components of their patches.

    python docs/emoji.py emoji-data

A network of as many numbers in a latent has to beat it. Prints PSNR on the held-out pictures in dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ldm_core.training import ImageFolder

LATENTS = ((16, 16), (8, 4))  # (pixels of a patch's side, components): 8x8x16 and 16x16x4 for 128 pixels
EVERY = 10  # of the training pictures; more change the second decimal


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    for side, components in LATENTS:
        psnr = linear_psnr(args.data, args.size, side, components)
        print(f"{components} components of {side}x{side} patches: {psnr:.1f} dB")
