"""Both stages of latent diffusion, on pictures made on the spot: coloured discs, in a minute on a CPU.

First an autoencoder learns to compress them, then a U-Net learns to draw them from words, on latents that
were computed once. Prints the losses as they fall, and saves what the model draws.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ldm_core import build, checkpoint, config, training
from ldm_core.training.logs import read_table

SIZE = 16  # pixels
RED, GREEN, BLUE = torch.eye(3) * 2 - 1
TINY = config.LatentDiffusionConfig(
    text_encoder=config.TextEncoderConfig(context_length=8, width=32, layers=1, heads=2),
    unet=config.UNetConfig(
        model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,), context_dim=32
    ),
    autoencoder=config.AutoencoderConfig(ch=64, ch_mult=(1, 1), num_res_blocks=1),
    image_size=SIZE,
)


def discs(count: int) -> training.TensorDataset:
    """Discs, here and there on white, with their colours as captions."""
    place = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images = torch.ones(count, 3, SIZE, SIZE)
    for image, colour in zip(images, (RED, GREEN, BLUE) * count):
        y, x = (torch.rand(2, generator=place) * SIZE / 3 + SIZE / 3).tolist()
        image[:, (rows - y) ** 2 + (columns - x) ** 2 < (SIZE / 3) ** 2] = colour[:, None]
    return training.TensorDataset(images, (["red disc", "green disc", "blue disc"] * count)[:count])


def train(name: str, trainer: training.Trainer) -> None:
    trainer.run()
    rows = read_table(trainer.folder / "metrics.csv")[1]
    print(f"{name}: " + ", ".join(f"{row['loss']:.3f} at step {row['step']}" for row in rows))


def main(steps: int, output: str, folder: Path) -> None:
    settings = training.TrainingSettings(
        steps, batch_size=16, learning_rate=1e-3, warmup=10, log_every=max(1, steps // 6), ema_decay=0.98
    )
    torch.manual_seed(0)  # of the first weights; all else is drawn from the settings' seed
    tiny, pictures = build(TINY), discs(60)

    training.init_logvar(tiny.autoencoder)
    squared = training.AutoencoderLossWeights(l1_start=steps)
    autoencoder = training.AutoencoderObjective(tiny.autoencoder, weights=squared)
    train("autoencoder", training.Trainer(autoencoder, pictures, folder / "autoencoder", settings))

    latents = training.CachedLatents(pictures, tiny.autoencoder, folder / "latents.npy")
    scale = 1 / torch.stack([latents[i]["mean"] for i in range(len(latents))]).std().item()
    tiny = replace(tiny, config=replace(TINY, latent_scale=scale))  # the U-Net's latents have variance 1
    diffusion = training.DiffusionObjective(tiny, train_text_encoder=True)
    trainer = training.Trainer(diffusion, latents, folder / "unet", replace(settings, learning_rate=2e-3))
    train("U-Net", trainer)
    with trainer.averaged():
        checkpoint.save(tiny, folder / "tiny.safetensors", dtype=torch.float16)
        training.sample_grid(tiny, ["red disc", "green disc", "blue disc"], steps=10).save(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of each stage")
    parser.add_argument("--output", default="train_tiny.png")
    parser.add_argument("--folder", type=Path, help="keeps the runs and the model, to go on with them")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        main(args.steps, args.output, args.folder or Path(temporary))
