"""Train the bundled model, a stage after another, from the pictures that `prepare.py` made.

    python examples/train_emoji/train.py autoencoder emoji-data runs
    python examples/train_emoji/train.py clip        emoji-data runs
    python examples/train_emoji/train.py diffusion   emoji-data runs
    python examples/train_emoji/train.py further     emoji-data runs --model weights/emoji.safetensors
    python examples/train_emoji/train.py decoder     emoji-data runs --model runs/further.safetensors

`further` trains the U-Net of a finished model, and `decoder` the decoder of its autoencoder, whose latents
stay as they are; without --model, they begin with what `diffusion` and `further` left.

Each stage leaves its run in a folder of RUNS (`state.safetensors`, `metrics.csv`, `tensorboard/`,
`samples/`) and, when it is done, a model: `clip` writes `runs/evaluator.safetensors`, the CLIP that judges,
`diffusion` `runs/emoji.safetensors`, and the last two stages a file of their own name. A stage that was cut
off, at any moment, goes on where it last saved when the same command is given again, on this machine or
another to which RUNS was copied.
`--steps 50` is for a quick look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from emoji_models import CLIP, EVALUATOR, MODEL, MODEL_F8, SIZE
from emoji_pictures import EmojiPictures, Repeated, worn
from PIL.Image import Image

from ldm_core import LatentDiffusion, build, checkpoint, clip, load
from ldm_core.autoencoder import AutoencoderKL
from ldm_core.checkpoint import CheckpointError
from ldm_core.config import AutoencoderConfig, LatentDiffusionConfig
from ldm_core.nn.blocks import ResBlock
from ldm_core.training import (
    AutoencoderLossWeights,
    AutoencoderObjective,
    CachedLatents,
    ContrastiveObjective,
    DiffusionObjective,
    Objective,
    Trainer,
    TrainingError,
    TrainingSettings,
    init_logvar,
    load_weights,
    reconstruction_grid,
    sample_grid,
)
from ldm_core.training.dataset import Dataset

PROMPTS = [
    *("grinning cat", "red apple", "pizza", "rocket", "red heart", "dog face", "cactus", "birthday cake"),
    *("ghost", "banana", "rose", "robot", "fire", "crown", "soccer ball", "panda"),
]
MODELS = {16: MODEL, 8: MODEL_F8}  # by the factor of the autoencoder
COMMON_TIMES = 6  # how often a common concept comes for each time that a rare one does

AUTOENCODER = TrainingSettings(
    steps=2800,
    batch_size=8,
    learning_rate=1e-3,
    warmup=20,
    final_rate=0.02,
    optimizer="muon",
    betas=(0.9, 0.99),
    ema_decay=0.995,
    seed=1,
    workers=1,
    save_every=50,
    picture_every=200,
)
CONTRAST = TrainingSettings(
    steps=400,
    batch_size=256,
    learning_rate=1e-3,
    warmup=20,
    final_rate=0.02,
    optimizer="muon",
    betas=(0.9, 0.98),
    weight_decay=0.1,
    ema_decay=0.99,
    seed=2,
    workers=1,
    save_every=25,
)
JUDGE = replace(CONTRAST, steps=1200, seed=3)
DIFFUSION = TrainingSettings(
    steps=2400,
    batch_size=128,
    learning_rate=1e-3,
    warmup=50,
    final_rate=0.02,
    optimizer="muon",
    betas=(0.9, 0.99),
    ema_decay=0.998,
    seed=4,
    save_every=50,
    picture_every=250,
)
FURTHER = replace(DIFFUSION, steps=1400, seed=5)
DECODER = replace(AUTOENCODER, steps=800, seed=6)


@dataclass(frozen=True)
class Run:
    """What all stages share."""

    data: Path
    runs: Path
    model: LatentDiffusionConfig
    steps: int | None
    precision: str
    quiet: bool
    device: str

    def pictures(self) -> EmojiPictures:
        return EmojiPictures(self.data / "train", SIZE)

    def train(
        self,
        name: str,
        objective: Objective,
        samples: Dataset,
        settings: TrainingSettings,
        picture: Callable[[], Image] | None = None,
    ) -> Trainer:
        settings = replace(settings, precision=self.precision)
        if self.steps is not None:
            settings = replace(settings, steps=self.steps, warmup=min(settings.warmup, self.steps // 10))
        trainer = Trainer(objective, samples, self.runs / name, settings, picture=picture, quiet=self.quiet)
        trainer.run()
        return trainer


def new_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    torch.manual_seed(AUTOENCODER.seed)
    autoencoder = AutoencoderKL(config)
    init_logvar(autoencoder)
    for module in autoencoder.modules():
        if isinstance(module, ResBlock):  # each begins by handing on what it gets (Zhang et al. 2019, Fixup)
            torch.nn.init.zeros_(module.conv2.weight)
            torch.nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]
    return autoencoder


def autoencoder_objective(autoencoder: AutoencoderKL) -> AutoencoderObjective:
    # Squared errors first: absolute ones alone begin by painting everything white.
    return AutoencoderObjective(autoencoder, weights=AutoencoderLossWeights(perceptual=0.1, l1_start=1800))


def train_autoencoder(run: Run) -> None:
    pictures, autoencoder = run.pictures(), new_autoencoder(run.model.autoencoder)
    unseen = EmojiPictures(run.data / "held-out", SIZE)
    shown = torch.stack([unseen[k]["image"] for k in range(0, len(unseen), max(1, len(unseen) // 8))][:8])
    run.train(
        "autoencoder",
        autoencoder_objective(autoencoder),
        pictures,
        AUTOENCODER,
        lambda: reconstruction_grid(autoencoder, shown),
    )


def train_clip(run: Run) -> None:
    """The text encoder's first weights, and apart from them, by another seed, the judge."""
    for name, networks, settings in (("evaluator", EVALUATOR, JUDGE), ("clip", CLIP, CONTRAST)):
        network = clip.CLIP(networks, torch.Generator().manual_seed(settings.seed))
        objective = ContrastiveObjective(network, augment=worn)
        pictures = EmojiPictures(run.data / "train", networks.image_encoder.image_size)
        trainer = run.train(name, objective, pictures, settings)
        with trainer.averaged():
            network.save(run.runs / f"{name}.safetensors")


def train_diffusion(run: Run, *, joint: bool) -> None:
    pictures = run.pictures()
    autoencoder = new_autoencoder(run.model.autoencoder)
    load_weights(autoencoder_objective(autoencoder), run.runs / "autoencoder" / "state.safetensors")
    latents = CachedLatents(pictures, autoencoder, run.runs / "latents.npy")
    torch.manual_seed(DIFFUSION.seed)
    emoji = build(replace(run.model, latent_scale=scale_of(latents)))
    assert isinstance(emoji.autoencoder, AutoencoderKL)
    emoji.autoencoder.load_state_dict(autoencoder.state_dict())
    taught = clip.CLIP.load(run.runs / "clip.safetensors").text_encoder
    emoji.modules["text_encoder"].load_state_dict(taught.state_dict())

    trainer = run.train(
        "diffusion",
        DiffusionObjective(emoji, min_snr_gamma=5.0, train_text_encoder=joint),
        Repeated(latents, often(pictures)),
        DIFFUSION,
        lambda: sample_grid(emoji, PROMPTS),
    )
    with trainer.averaged():
        checkpoint.save(shipped(emoji), run.runs / "emoji.safetensors", dtype=torch.float16)


def train_further(run: Run, file: Path, *, joint: bool) -> None:
    """Take a finished model further.

    Min-SNR's weights almost leave out the noisiest timesteps of v; here all timesteps weigh the same.
    """
    pictures, emoji = run.pictures(), load(file, device=run.device, dtype=torch.float32)
    assert isinstance(emoji.autoencoder, AutoencoderKL)
    latents = CachedLatents(pictures, emoji.autoencoder, run.runs / "latents-further.npy")
    trainer = run.train(
        "further",
        DiffusionObjective(emoji, train_text_encoder=joint),
        Repeated(latents, often(pictures)),
        FURTHER,
        lambda: sample_grid(emoji, PROMPTS),
    )
    with trainer.averaged():
        checkpoint.save(emoji, run.runs / "further.safetensors", dtype=torch.float16)


def train_decoder(run: Run, file: Path) -> None:
    """Train the decoder on the latents that the U-Net already draws."""
    pictures, emoji = run.pictures(), load(file, dtype=torch.float32)
    assert isinstance(emoji.autoencoder, AutoencoderKL)
    weights = AutoencoderLossWeights(perceptual=0.3)
    objective = AutoencoderObjective(emoji.autoencoder, weights=weights, train_encoder=False)
    trainer = run.train("decoder", objective, pictures, DECODER)
    with trainer.averaged():
        checkpoint.save(emoji, run.runs / "decoder.safetensors", dtype=torch.float16)


def often(pictures: EmojiPictures) -> list[int]:
    """How many places each picture has."""
    return [COMMON_TIMES if common else 1 for common in pictures.common]


def scale_of(latents: CachedLatents) -> float:
    """What gives the U-Net's latents a variance of 1 (the paper's appendix D.1)."""
    means = torch.stack([latents[k]["mean"] for k in range(len(latents))])
    return 1 / means.std().item()


def shipped(emoji: LatentDiffusion) -> LatentDiffusion:
    """The model without what only its text encoder's first training needed."""
    text = replace(emoji.config.text_encoder, projection_dim=None)
    bare = build(replace(emoji.config, text_encoder=text))
    for name, module in bare.modules.items():
        module.load_state_dict(emoji.modules[name].state_dict(), strict=name != "text_encoder")
    return bare


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["autoencoder", "clip", "diffusion", "further", "decoder"])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, help="of the stage, in place of the recipe's")
    parser.add_argument(
        "--factor",
        type=int,
        choices=[8, 16],
        default=16,
        help="by which the autoencoder makes pictures smaller",
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--text",
        choices=["frozen", "joint"],
        help="whether the text encoder learns with the U-Net (frozen, if not given)",
    )
    parser.add_argument("--model", type=Path, help="what `further` and `decoder` begin with")
    parser.add_argument("--device", default="cpu", help="where `further` trains")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(arguments)
    if args.model and args.stage not in ("further", "decoder"):
        parser.error(f"--model is what `further` and `decoder` begin with; {args.stage} takes none")
    if args.text and args.stage not in ("diffusion", "further"):
        parser.error(f"--text is for `diffusion` and `further`; {args.stage} trains no U-Net")
    if args.device != "cpu" and args.stage != "further":
        parser.error(f"--device is where `further` trains; {args.stage} trains on the CPU")
    model = MODELS[args.factor]
    run = Run(args.data, args.runs, model, args.steps, args.precision, args.quiet, args.device)
    try:
        if args.stage == "autoencoder":
            train_autoencoder(run)
        elif args.stage == "clip":
            train_clip(run)
        elif args.stage == "diffusion":
            train_diffusion(run, joint=args.text == "joint")
        elif args.stage == "further":
            train_further(run, args.model or run.runs / "emoji.safetensors", joint=args.text == "joint")
        else:
            train_decoder(run, args.model or run.runs / "further.safetensors")
    except (ValueError, OSError, TrainingError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
