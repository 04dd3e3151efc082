"""Train a small model for each task of the latent diffusion paper on emoji artwork of 64 pixels.

    python examples/train_emoji/prepare.py emoji-data --size 128
    python examples/train_zoo.py emoji-data runs

The models share one VQ autoencoder with f = 4 (arXiv:2112.10752, section 3.1):

    unconditional   pictures from noise
    classes         a class embedder of the emoji's groups, with guidance
    maps            a semantic map of the colours of 4 x 4 pixels
    upscaler        super-resolution from 16 to 64 pixels

Each has less than 4 MB in float16: `runs/NAME.safetensors`. An interrupted
run continues where it last saved. `--steps 20 --autoencoder-steps 20` is a quick look, and
`--autoencoder weights/small/classes.safetensors --tasks maps` trains one task in the bundled latents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core import build, load, save
from ldm_core.autoencoder import AutoencoderVQ, AutoencoderVQConfig
from ldm_core.conditioners import ClassEmbedderConfig, LowResolutionConfig, SemanticMapConfig
from ldm_core.config import CELEBA256, UNetConfig
from ldm_core.training import (
    AutoencoderVQLossWeights,
    AutoencoderVQObjective,
    CachedLatents,
    DiffusionObjective,
    ImageFolder,
    TensorDataset,
    Trainer,
    TrainingSettings,
)
from ldm_core.training.dataset import Sample
from ldm_core.training.objective import Batch, Metrics

SIZE, SMALL = 64, 16  # pixels of a picture and of a small one
COLOURS = ((255, 255, 255), (20, 20, 20), (128, 128, 128), (220, 40, 50), (250, 150, 40), (255, 215, 80),
           (120, 80, 50), (90, 170, 70), (60, 140, 230), (150, 90, 190), (250, 180, 190))  # fmt: skip

AUTOENCODER = AutoencoderVQConfig(
    embed_dim=3, z_channels=3, n_embed=512, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, resolution=SIZE
)
UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 4),
    num_heads=None,
    num_head_channels=32,
    context_dim=None,
)
BASE = replace(CELEBA256, autoencoder=AUTOENCODER, unet=UNET, image_size=SIZE, use_ema=False)
COMMON = TrainingSettings(
    steps=1500,
    batch_size=64,
    learning_rate=2e-3,
    warmup=20,
    final_rate=0.02,
    optimizer="muon",
    betas=(0.9, 0.99),
    ema_decay=0.995,
    save_every=50,
    picture_every=10**6,
)


class Pictures(TensorDataset):
    """Pictures in memory, with what each task needs besides."""

    def __init__(self, folder: Path, task: str) -> None:
        files = ImageFolder(folder, SIZE)
        super().__init__(torch.stack([files[k]["image"] for k in range(len(files))]).half())
        rows = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
        groups = {row["file_name"]: row["group"] for row in rows}
        self.groups = sorted(set(groups.values()))
        self.labels = [self.groups.index(groups[name]) for name in files.names]
        self.task = task
        if task == "unconditional":
            self.inputs = None  # type: ignore[assignment, method-assign]

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.images[index].float(), "text": ()}

    def inputs(self, index: int) -> Any:
        """What the conditioner takes for one picture."""
        if self.task == "classes":
            return self.labels[index]
        small = shrunk(self.images[index : index + 1].float() / 2 + 0.5)
        return small[0] if self.task == "upscaler" else colour_map(small)[0]


def shrunk(images: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64) at 16 pixels: the mean of each 4 x 4 pixels."""
    return F.avg_pool2d(images, SIZE // SMALL)


def colour_map(small: Tensor) -> Tensor:
    """The nearest of `COLOURS` of small pictures in [0, 1], at 64 pixels: LongTensor (B, 64, 64)."""
    palette = torch.tensor(COLOURS) / 255
    distances = (small[:, None] - palette[None, :, :, None, None]).square().sum(dim=2)
    nearest = distances.argmin(dim=1)
    return nearest.repeat_interleave(SIZE // SMALL, 1).repeat_interleave(SIZE // SMALL, 2)


def task_config(task: str, classes: int, scale: float) -> Any:
    config = replace(BASE, latent_scale=scale)
    if task == "classes":
        own = ClassEmbedderConfig(classes + 1, width=64, null_class=classes)
        # Transformers have more weights than plain attention: the middle level is narrower.
        unet = replace(UNET, context_dim=64, channel_mult=(1, 1, 2))
        return replace(config, unet=unet, conditioner=own)
    if task == "maps":
        joined = replace(UNET, in_channels=6)
        return replace(config, unet=joined, conditioner=SemanticMapConfig(len(COLOURS)))
    if task == "upscaler":
        return replace(config, unet=replace(UNET, in_channels=6), conditioner=LowResolutionConfig())
    return config


class RestartsCodes(AutoencoderVQObjective):
    """Every `EVERY` steps until `until`, codes that the batch does not use become latents of the batch.

    Otherwise few codes follow the encoder in its first steps, and the others stay unused (random restarts:
    Dhariwal et al. 2020, arXiv:2005.00341, section 3.1).
    """

    EVERY = 10
    until: int

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        if step < self.until and step % self.EVERY == 0:
            self.restart(batch["image"], generators[0])
        return super().loss(batch, generators, step)

    @torch.no_grad()
    def restart(self, images: Tensor, generator: torch.Generator) -> None:
        z = self.autoencoder.encode(images).latents.float()
        _, indices = self.autoencoder.quantize(z)
        codebook = self.autoencoder.codebook
        unused = torch.bincount(indices.flatten(), minlength=len(codebook)) == 0
        latents = z.permute(0, 2, 3, 1).flatten(0, 2)  # (B, D, h, w) -> (B h w, D)
        codebook[unused] = latents[torch.randint(len(latents), (int(unused.sum()),), generator=generator)]


def train_autoencoder(pictures: Pictures, runs: Path, settings: TrainingSettings) -> AutoencoderVQ:
    torch.manual_seed(0)
    autoencoder = AutoencoderVQ(AUTOENCODER)
    # The absolute error alone first learns the median: plain white.
    weights = AutoencoderVQLossWeights(perceptual=0.3, l1_start=settings.steps // 5)
    objective = RestartsCodes(autoencoder, weights=weights)
    objective.until = settings.steps // 2
    trainer = Trainer(objective, pictures, runs / "autoencoder", settings)
    trainer.run()
    with trainer.averaged():
        averaged = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    autoencoder.load_state_dict(averaged)
    return autoencoder.eval().requires_grad_(False)


def train_task(
    task: str, data: Path, runs: Path, autoencoder: AutoencoderVQ, settings: TrainingSettings
) -> None:
    pictures = Pictures(data / "train", task)
    latents = CachedLatents(pictures, autoencoder, runs / "latents.npy", batch_size=64)
    scale = 1 / torch.stack([latents[k]["mean"] for k in range(min(512, len(latents)))]).std().item()
    torch.manual_seed(1)
    model = build(task_config(task, len(pictures.groups), scale))
    model.modules["autoencoder"].load_state_dict(autoencoder.state_dict())
    trained = task in ("classes", "maps")
    dropout = 0.1 if task == "classes" else 0.0
    objective = DiffusionObjective(model, condition_dropout=dropout, train_conditioner=trained)
    trainer = Trainer(objective, latents, runs / task, settings)
    trainer.run()
    with trainer.averaged():
        save(model, runs / f"{task}.safetensors", dtype=torch.float16)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, default=COMMON.steps, help="of each model")
    parser.add_argument("--autoencoder-steps", type=int, default=350)
    parser.add_argument("--autoencoder", type=Path, help="a model of this script whose autoencoder to take")
    parser.add_argument("--tasks", nargs="+", default=["unconditional", "classes", "maps", "upscaler"])
    args = parser.parse_args(arguments)
    settings, first = (
        replace(COMMON, steps=steps, warmup=min(COMMON.warmup, steps // 10), batch_size=batch_size)
        for steps, batch_size in ((args.steps, 64), (args.autoencoder_steps, 32))
    )
    if args.autoencoder:
        autoencoder = load(args.autoencoder, dtype=torch.float32).modules["autoencoder"]
    else:
        autoencoder = train_autoencoder(Pictures(args.data / "train", "unconditional"), args.runs, first)
    for task in args.tasks:
        train_task(task, args.data, args.runs, autoencoder, settings)


if __name__ == "__main__":
    main()
