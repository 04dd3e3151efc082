"""Train a ControlNet of the bundled model that draws emoji along given edges.

    pip install "ldm_core[control]"
    python examples/train_emoji/prepare.py emoji-data --size 128
    python examples/train_controlnet.py emoji-data runs

Writes runs/edges.safetensors, for `ldm_core.load_control`, and runs/edges.png: for held-out pictures the
edges, and what the model draws from the prompt alone and with the control. An interrupted run continues
where it last saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ldm_core
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.preprocessors import canny
from ldm_core.images import tensor_to_pil
from ldm_core.training import (
    CachedLatents,
    ControlNetObjective,
    DiffusionObjective,
    ImageFolder,
    Trainer,
    TrainingSettings,
)
from ldm_core.training.data_order import noise_generators
from ldm_core.training.dataset import collate
from ldm_core.watch import make_grid

SIZE = 128
HINT_WIDTHS = (16, 32, 64, 128, 256)  # halves a picture four times, as the bundled autoencoder


class WithEdges:
    """Latents, and the edges of their pictures as "hint"."""

    def __init__(self, latents: CachedLatents, pictures: ImageFolder) -> None:
        self.latents, self.pictures = latents, pictures
        self.fingerprint = latents.fingerprint

    def __len__(self) -> int:
        return len(self.latents)

    def text(self, index: int) -> tuple[str, ...]:
        return self.latents.text(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        edges = canny(self.pictures[index]["image"] / 2 + 0.5)[0]
        return {**self.latents[index], "hint": edges}


def sheet(model: ldm_core.LatentDiffusion, net: ControlNet, pictures: ImageFolder) -> Any:
    """Ten held-out pictures, evenly spaced in the order of their names."""
    chosen = [k * len(pictures) // 10 for k in range(10)]
    images = torch.stack([pictures[k]["image"] / 2 + 0.5 for k in chosen])
    prompts = [pictures.text(k)[0] for k in chosen]
    edges = canny(images)
    sampler = ldm_core.Sampler(model)
    options: dict[str, Any] = {"steps": 25, "seed": 0, "guidance_scale": 4}
    alone = sampler.txt2img(prompts, **options)
    drawn = sampler.txt2img(prompts, controls=[ldm_core.Control(net, edges)], **options)
    rows = [tensor_to_pil(images), tensor_to_pil(edges), alone, drawn]
    names = ["held-out picture", "its edges", "prompt alone", "with control"]
    return make_grid(rows, rows=names, labels=[prompts], tile=96)


@torch.no_grad()
def errors(model: ldm_core.LatentDiffusion, net: ControlNet, pictures: ImageFolder) -> list[str]:
    """The loss of 64 pictures with their edges, with another picture's, and without the control."""
    samples = [pictures[k * len(pictures) // 64] for k in range(64)]
    batch = collate([{**one, "hint": canny(one["image"] / 2 + 0.5)[0]} for one in samples])
    controlled = ControlNetObjective(model, net, condition_dropout=0)
    alone = DiffusionObjective(model, condition_dropout=0)
    other = {**batch, "hint": batch["hint"].roll(1, dims=0)}
    cases = {"its edges": (controlled, batch), "others": (controlled, other), "none": (alone, batch)}
    return [
        f"{objective.loss(given, noise_generators(0, range(64)), 0)[0]:.4f} ({name})"
        for name, (objective, given) in cases.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args(arguments)

    model = ldm_core.load(dtype=torch.float32)
    pictures = ImageFolder(args.data / "train", SIZE)
    latents = CachedLatents(pictures, model.autoencoder, args.runs / "latents.npy", batch_size=16)
    net = ControlNet.of(model.unet, hint_widths=HINT_WIDTHS)
    settings = TrainingSettings(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=2e-3,
        warmup=min(20, args.steps // 10),
        final_rate=0.1,
        optimizer="muon",
        betas=(0.9, 0.99),
        ema_decay=0.98,
        save_every=50,
        picture_every=10**6,
    )
    trainer = Trainer(ControlNetObjective(model, net), WithEdges(latents, pictures), args.runs, settings)
    trainer.run()
    with trainer.averaged():
        ldm_core.save(net, args.runs / "edges.safetensors")
        held_out = ImageFolder(args.data / "held-out", SIZE)
        sheet(model, net, held_out).save(args.runs / "edges.png")
        print("error on held-out pictures: " + ", ".join(errors(model, net, held_out)))


if __name__ == "__main__":
    main()
