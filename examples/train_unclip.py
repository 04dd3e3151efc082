"""Train a small unCLIP on emoji artwork: a CLIP, a decoder and a prior, each in minutes.

    python examples/train_emoji/prepare.py emoji-data --size 128
    python examples/train_unclip.py emoji-data runs

    clip      both encoders, by the contrastive loss (arXiv:2103.00020), from the bundled text encoder
    decoder   the bundled model, with CLIP's image embedding as a further condition (arXiv:2204.06125)
    prior     a transformer from texts to image embeddings
    sheet     pictures of texts, variations, mixtures and changes: `runs/unclip.png`

Each stage writes `runs/STAGE.safetensors`. A stage that was interrupted continues where it last saved, and
one that is done is not trained again. `--steps 20` is a quick look, and `--stages prior sheet` a part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ldm_core import CLIP, DDIM, LatentDiffusion, Sampler, UnCLIP, build, load, load_prior, save
from ldm_core.clip import CLIPConfig, preprocess_stretched
from ldm_core.condition import Condition
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import ImageEncoderConfig
from ldm_core.images import tensor_to_pil
from ldm_core.prior import Prior, PriorConfig, PriorTransformer
from ldm_core.training import (
    CachedLatents,
    ContrastiveObjective,
    DiffusionObjective,
    ImageFolder,
    Objective,
    PriorObjective,
    TensorDataset,
    Trainer,
    TrainingSettings,
)
from ldm_core.training.dataset import Dataset, Sample
from ldm_core.training.objective import Batch, uniform
from ldm_core.watch import make_grid

STAGES = ("clip", "decoder", "prior", "sheet")
SIZE, SMALL = 128, 64  # pixels of the decoder's pictures and of CLIP's
WIDTH = 128  # of embeddings
IMAGE_ENCODER = ImageEncoderConfig(
    image_size=SMALL, patch_size=8, width=128, layers=4, heads=2, projection_dim=WIDTH
)
PRIOR = PriorConfig(width=192, layers=4, heads=3, embedding_dim=WIDTH, text_width=WIDTH)
READS = 0.3  # how often the decoder reads the caption, too; 0.5 in the paper
FORGETS = 0.1  # how often it gets no embedding, for guidance
NOISE_LEVELS = 500  # of embeddings in training, of the schedule's 1,000
SETTINGS = {
    "clip": TrainingSettings(
        steps=400,
        batch_size=256,
        learning_rate=1e-3,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        ema_decay=0.99,
        seed=1,
    ),
    "decoder": TrainingSettings(
        steps=500, batch_size=64, learning_rate=2e-3, betas=(0.9, 0.99), ema_decay=0.99, seed=2
    ),
    "prior": TrainingSettings(
        steps=400, batch_size=256, learning_rate=2e-3, betas=(0.9, 0.99), ema_decay=0.995, seed=3
    ),
}
COMMON = {"warmup": 20, "final_rate": 0.02, "optimizer": "muon", "save_every": 25, "picture_every": 10**6}

TEXTS = ("red apple", "grinning cat", "rocket", "birthday cake", "panda", "fire")
PAIRS = (("red apple", "banana"), ("dog face", "panda"))  # of which pictures are mixed
CHANGES = (("grinning cat", "fire", ""), ("red heart", "blue", "red"), ("dog face", "sad", "happy"))


class Embedded:
    """The samples of another dataset with the CLIP embeddings of their pictures."""

    def __init__(self, dataset: Dataset, embeddings: Tensor) -> None:
        self.dataset, self.embeddings = dataset, embeddings
        self.fingerprint = dataset.fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index] | {"embedding": self.embeddings[index]}

    def text(self, index: int) -> tuple[str, ...]:
        return self.dataset.text(index)


class Texts:
    """Captions without pictures."""

    def __init__(self, dataset: Dataset) -> None:
        self.fingerprint = dataset.fingerprint
        self.texts = [dataset.text(k) for k in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Sample:
        return {"text": self.texts[index]}

    def text(self, index: int) -> tuple[str, ...]:
        return self.texts[index]


class DecoderObjective(DiffusionObjective):
    """The diffusion loss with noised embeddings and some captions, drawn by the samples' generators."""

    def _condition(self, batch: Batch, generators: Sequence[torch.Generator]) -> Condition:
        reads, forgets, levels, choices = (uniform(generators).tolist() for _ in range(4))
        inputs = [
            {
                "prompt": text[int(choice * len(text))] if read < READS and forget >= FORGETS else "",
                "embedding": embedding,
                "noise_level": int(level * NOISE_LEVELS),
            }
            for text, embedding, read, forget, level, choice in zip(
                batch["text"], batch["embedding"], reads, forgets, levels, choices
            )
        ]
        with torch.no_grad():
            condition = self.model.conditioner(inputs, generators)  # type: ignore[call-arg]
        kept = torch.tensor([forget >= FORGETS for forget in forgets])[:, None]
        assert condition.vector is not None
        return replace(condition, vector=condition.vector * kept).to(self.model.device, self.model.dtype)


class Run:
    """The pictures, and what the stages share."""

    def __init__(self, data: Path, runs: Path, steps: int | None, draw_steps: int, device: str) -> None:
        self.runs, self.steps, self.draw_steps, self.device = runs, steps, draw_steps, device
        runs.mkdir(parents=True, exist_ok=True)
        self.pictures = ImageFolder(data / "train", SIZE)
        rows = map(json.loads, (data / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
        captions = {row["file_name"]: (row["text"], f"{row['text']}, {row['style']}") for row in rows}
        self.pictures.texts = [captions[name] for name in self.pictures.names]

    def train(self, stage: str, objective: Objective, samples: Dataset) -> Trainer:
        settings = replace(SETTINGS[stage], **COMMON)  # type: ignore[arg-type]
        if self.steps is not None:
            settings = replace(settings, steps=self.steps, warmup=min(settings.warmup, self.steps // 10))
        trainer = Trainer(objective, samples, self.runs / stage, settings)
        trainer.run()
        return trainer

    def file(self, stage: str) -> Path:
        return self.runs / f"{stage}.safetensors"

    def clip(self) -> CLIP:
        return CLIP.load(self.file("clip"), device=self.device)

    @torch.no_grad()
    def embeddings(self, clip: CLIP) -> Tensor:
        """CLIP's embeddings of all pictures (n, WIDTH)."""
        rows = []
        for first in range(0, len(self.pictures), 64):
            places = range(first, min(first + 64, len(self.pictures)))
            images = torch.stack([self.pictures[k]["image"] for k in places]) / 2 + 0.5
            pixels = preprocess_stretched(images, clip.config.image_encoder, antialias=True)
            rows.append(clip.image_encoder(pixels.to(clip.device)).float().cpu())
        return torch.cat(rows)


def train_clip(run: Run) -> None:
    text_encoder: Any = load().text_encoder
    config = CLIPConfig(IMAGE_ENCODER, replace(text_encoder.config, projection_dim=WIDTH))
    clip = CLIP(config, torch.Generator().manual_seed(0))
    clip.text_encoder.load_state_dict(text_encoder.state_dict(), strict=False)
    size = (SMALL, SMALL)
    small = torch.cat(
        [
            torch.nn.functional.interpolate(run.pictures[k]["image"][None], size, mode="area").half()
            for k in range(len(run.pictures))
        ]
    )
    trainer = run.train(
        "clip", ContrastiveObjective(clip.to(run.device)), TensorDataset(small, run.pictures.texts)
    )
    with trainer.averaged():
        clip.save(run.file("clip"))


def new_decoder(clip: CLIP, embeddings: Tensor) -> LatentDiffusion:
    """The bundled model with a further input, which at first changes nothing."""
    bundled = load()
    unet = replace(bundled.config.unet, adm_in_channels=2 * WIDTH)
    conditioner = UnclipConfig(WIDTH, image_encoder=clip.config.image_encoder, statistics=True)
    torch.manual_seed(0)
    model = build(replace(bundled.config, unet=unet, conditioner=conditioner))
    for name in ("unet", "autoencoder", "text_encoder"):
        model.modules[name].load_state_dict(bundled.modules[name].state_dict(), strict=False)
    last: Any = list(model.unet.label_emb.modules())[-1]  # type: ignore[attr-defined]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    own: Any = model.conditioner
    own.network.image_encoder.load_state_dict(clip.image_encoder.state_dict())
    made = replace(own, mean=embeddings.mean(dim=0), std=embeddings.std(dim=0))
    return replace(model, conditioner=made)


def train_decoder(run: Run) -> None:
    clip = run.clip()
    embeddings = run.embeddings(clip)
    model = new_decoder(clip.cpu(), embeddings).to(run.device)
    latents = CachedLatents(run.pictures, model.autoencoder, run.runs / "latents.npy", batch_size=64)  # type: ignore[arg-type]
    trainer = run.train(
        "decoder", DecoderObjective(model, condition_dropout=0), Embedded(latents, embeddings)
    )
    with trainer.averaged():
        save(model, run.file("decoder"), dtype=torch.float16)


def train_prior(run: Run) -> None:
    clip = run.clip()
    embeddings = run.embeddings(clip)
    torch.manual_seed(0)
    network = PriorTransformer(PRIOR)
    assert network.mean is not None
    assert network.std is not None
    network.mean.copy_(embeddings.mean(dim=0, keepdim=True))
    network.std.copy_(embeddings.std(dim=0, keepdim=True))
    prior = Prior(network.to(run.device), clip.text_encoder, clip.tokenizer)
    trainer = run.train("prior", PriorObjective(prior), Embedded(Texts(run.pictures), embeddings))
    with trainer.averaged():
        save(network, run.file("prior"))


@torch.no_grad()
def draw_sheet(run: Run) -> None:
    model = load(run.file("decoder"), device=run.device)
    prior = load_prior(run.file("prior"), clip=run.clip(), device=run.device)
    unclip = UnCLIP(Sampler(model, DDIM()), prior)
    options: dict[str, Any] = {"steps": run.draw_steps, "guidance_scale": 4.0, "seed": 0}
    names = dict.fromkeys((*sum(PAIRS, ()), *(change[0] for change in CHANGES)))
    chosen = {text: picture_of(run, text) for text in names}
    rows = [("text, by\nthe prior", unclip.txt2img(list(TEXTS), read=False, **options), TEXTS)]
    for text in list(chosen)[:2]:
        drawn = unclip.variations(chosen[text], num_images=5, **options)
        rows.append((f"variations\n{text}", [chosen[text], *drawn], ["the picture"]))
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    for a, b in PAIRS:
        drawn = [unclip.mix([(chosen[a], 1 - share), (chosen[b], share)], **options)[0] for share in shares]
        rows.append((f"{a} to\n{b}", drawn, [f"{share:g}" for share in shares]))
    amounts = (0.0, 0.15, 0.3, 0.45, 0.6)
    for source, towards, away in CHANGES:
        drawn = [unclip.change(chosen[source], towards, away, amount, **options)[0] for amount in amounts]
        named = f"{source}:\n{towards}" + (f" - {away}" if away else "")
        rows.append((named, drawn, [f"{amount:g}" for amount in amounts]))
    titles, pictures, labels = zip(*rows)
    make_grid(pictures, rows=titles, labels=labels, title="unCLIP").save(run.runs / "unclip.png")
    print(f"saved {run.runs / 'unclip.png'}")


def picture_of(run: Run, text: str) -> Image:
    """The first training picture with this caption; any if there is none."""
    places = [k for k, texts in enumerate(run.pictures.texts) if texts[0] == text] or [0]
    return tensor_to_pil(run.pictures[places[0]]["image"][None] / 2 + 0.5)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, help="of each stage, in place of its own number")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--draw-steps", type=int, default=25, help="of the sheet's pictures")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    run = Run(args.data, args.runs, args.steps, args.draw_steps, args.device)
    stages = {"clip": train_clip, "decoder": train_decoder, "prior": train_prior, "sheet": draw_sheet}
    for stage in args.stages:
        print(stage)
        stages[stage](run)


if __name__ == "__main__":
    main()
