"""Both stages of latent diffusion on pictures that are made on the spot: coloured discs, in seconds on a CPU.

First an autoencoder learns to compress them, then a U-Net learns to draw them from words, on latents that
were computed once. Prints the losses as they fall, and saves what the model draws.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import torch

from ldm_core import config
from ldm_core.checkpoint import save
from ldm_core.model import build
from ldm_core.training import AutoencoderObjective, AutoencoderWeights, CachedLatents, DiffusionObjective
from ldm_core.training import TensorSamples, Trainer, TrainingSettings, sample_sheet, start_posterior
from ldm_core.training.logs import read_table

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "black": (-1, -1, -1)}
TINY = config.LatentDiffusionConfig(
    text_encoder=config.TextEncoderConfig(width=64, layers=1, heads=2),
    unet=config.UNetConfig(
        model_channels=64, channel_mult=(1, 2), num_res_blocks=1, num_heads=2, context_dim=64
    ),
    autoencoder=config.AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1),
    image_size=32,
    latent_scale=1.0,
)


def discs(count: int, size: int = 32) -> TensorSamples:
    """Discs of every colour, here and there on white, with their colours as captions."""
    place = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = torch.ones(count, 3, size, size)
    for image, colour in zip(images, list(COLOURS.values()) * count):
        y, x = (torch.rand(2, generator=place) * 8 + size / 2 - 4).tolist()
        image[:, (rows - y) ** 2 + (columns - x) ** 2 < (size / 4) ** 2] = torch.tensor(colour).float()[:, None]
    return TensorSamples(images, [f"{colour} disc" for colour in list(COLOURS) * count][:count])


def train(name: str, trainer: Trainer) -> None:
    trainer.run()
    rows = read_table(trainer.folder / "metrics.csv")[1]
    print(name, " ".join(f"{row['step']}: {row['loss']:.3f}" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of each stage")
    parser.add_argument("--output", default="train_tiny.png")
    parser.add_argument("--folder", default=None, help="keeps the runs, to go on with; else a temporary one")
    args = parser.parse_args()
    folder = Path(args.folder or mkdtemp())
    settings = TrainingSettings(
        args.steps, batch_size=16, learning_rate=2e-3, log_every=max(1, args.steps // 8), ema_decay=0.98
    )

    torch.manual_seed(0)  # of the first weights; all else is drawn from the settings' seed
    model, pictures = build(TINY), discs(64)
    start_posterior(model.autoencoder)
    first = AutoencoderObjective(model.autoencoder, weights=AutoencoderWeights(l1_start=args.steps // 2))
    train("autoencoder", Trainer(first, pictures, folder / "autoencoder", settings))

    latents = CachedLatents(pictures, model.autoencoder, folder / "latents.npy")
    scale = 1 / torch.stack([latents[i]["mean"] for i in range(len(latents))]).std().item()
    model = replace(model, config=replace(TINY, latent_scale=scale))  # latents of unit variance
    trainer = Trainer(DiffusionObjective(model, train_text_encoder=True), latents, folder / "unet", settings)
    train("unet", trainer)
    with trainer.averaged():
        save(model, folder / "tiny.safetensors", dtype=torch.float16)
        sample_sheet(model, [f"{colour} disc" for colour in COLOURS], steps=10).save(args.output)


if __name__ == "__main__":
    main()
