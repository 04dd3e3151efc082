"""Four ways to teach the bundled model something new, each in minutes on a CPU: before and after.

    full                every weight learns a new subject, a purple creature with three eyes
    lora                a few small matrices learn a style, for whatever is drawn
    textual-inversion   one word's vectors learn the subject, and nothing else changes
    dreambooth          every weight learns the subject, and pictures of its class keep that what it was

The pictures to learn from are made on the spot. What was learned is saved, and the pictures after it are
drawn from that file. The sheet has pictures to learn from, and below them each prompt before and after.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image, ImageDraw

import ldm_core
from ldm_core import checkpoint, training
from ldm_core.grid import grid
from ldm_core.images import image_to_tensor, tensor_to_pil
from ldm_core.training.lora import ATTENTION, FEED_FORWARD

SEEN = ["grinning face", "red apple", "cat face", "fire", "panda", "rocket", "dog face", "heart"]
SEEN += ["frog", "lion", "pizza", "cookie", "rabbit face", "strawberry", "bird", "angry face"]


@dataclass
class Method:
    """How long, how fast, on what; and the prompts that show it: of what was learned, and of other things."""

    steps: int
    rate: float
    prompts: list[str]


METHODS = {
    "full": Method(150, 1e-4, ["zorp", "zorp", "zorp", "ogre", "dog face"]),
    "lora": Method(200, 2e-3, ["tiger face", "owl", "lemon", "hamburger", "bear"]),
    "textual-inversion": Method(250, 2e-2, ["zorp", "zorp", "zorp", "ogre", "dog face"]),
    "dreambooth": Method(120, 1e-4, ["zorp ogre", "zorp ogre", "ogre", "ogre", "dog face"]),
}


def creature(pose: int, size: int) -> Image.Image:
    """The subject, drawn four times too large: purple, horned, three-eyed, here and there, tilted."""
    draw_from = torch.Generator().manual_seed(pose)
    x, y, tilt, mouth, look = (torch.rand(5, generator=draw_from) * 2 - 1).tolist()
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    for side in (-1, 1):
        horn = [(128 + side * 30, 70), (128 + side * 75, 15), (128 + side * 72, 90)]
        pen.polygon(horn, fill="#f2b134", outline="#7a4b00")
    pen.ellipse((32, 50, 224, 236), fill="#7b2fbf", outline="#3d1466", width=5)
    for cx, cy in ((78, 118), (128, 96), (178, 118)):
        pen.ellipse((cx - 25, cy - 25, cx + 25, cy + 25), fill="white", outline="#3d1466", width=4)
        pen.ellipse((cx - 10 + 9 * look, cy - 10, cx + 10 + 9 * look, cy + 10), fill="black")
    pen.ellipse((84, 172 - 14 * mouth, 172, 202 + 14 * mouth), fill="#c81e4a", outline="#3d1466", width=4)
    image = image.rotate(14 * tilt, Image.Resampling.BICUBIC, fillcolor="white", translate=(14 * x, 12 * y))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def subject(model: ldm_core.LatentDiffusion, caption: str) -> training.TensorSamples:
    images = [creature(pose, model.config.image_size) for pose in range(12)]
    return training.TensorSamples(torch.cat([image_to_tensor(i) for i in images]) * 2 - 1, [caption] * 12)


def style(model: ldm_core.LatentDiffusion, prompts: list[str]) -> training.TensorSamples:
    """The model's own pictures in blue ink: the brighter, the nearer to white."""
    images = ldm_core.Sampler(model).txt2img(prompts, steps=25, guidance_scale=4.0, seed=50, output="tensor")
    grey = images.mean(dim=1, keepdim=True)
    blue = torch.tensor([0.05, 0.15, 0.6])[:, None, None]
    return training.TensorSamples((blue + (1 - blue) * grey) * 2 - 1, prompts)


def learn(name: str, method: Method, folder: Path) -> tuple[ldm_core.LatentDiffusion, training.TensorSamples]:
    """A model that has learned, from the file that it was saved in, and the pictures that it learned from."""
    model = ldm_core.load()
    file = folder / f"{name}.safetensors"
    settings = training.TrainingSettings(
        method.steps, batch_size=8, learning_rate=method.rate, warmup=method.steps // 10, ema_decay=0.98
    )
    pictures = style(model, SEEN) if name == "lora" else subject(model, method.prompts[0])
    latents = training.CachedLatents(pictures, model.autoencoder, folder / "latents.npy")
    adapter: training.TrainableLora | training.LearnedWord | None = None
    if name == "lora":
        adapter = training.TrainableLora(model, rank=8, layers=ATTENTION + FEED_FORWARD)
    elif name == "textual-inversion":
        adapter = training.LearnedWord(model, "zorp", "ogre", vectors=1)
    objective = training.DiffusionObjective(
        model, condition_dropout=0.0, adapter=adapter, train_text_encoder=adapter is None
    )
    samples, trained = latents, objective
    if name == "dreambooth":
        before = training.class_pictures(model, "ogre", folder / "class", 32)
        prior = training.CachedLatents(before, model.autoencoder, folder / "prior.npy")
        samples, trained = training.WithPrior(latents, prior), training.PriorPreservation(objective)
    trainer = training.Trainer(trained, samples, folder / "run", settings)
    trainer.run()

    with trainer.averaged():
        checkpoint.save(model, file) if adapter is None else adapter.save(file)
    if adapter is None:
        return ldm_core.load(file), pictures
    fresh = ldm_core.load()
    apply = ldm_core.apply_lora if name == "lora" else ldm_core.apply_textual_inversion
    apply(fresh, file)
    return fresh, pictures


def main(name: str, method: Method, output: str, folder: Path, seed: int) -> None:
    learned, pictures = learn(name, method, folder)
    options = {"steps": 25, "guidance_scale": 4.0, "seed": seed}
    rows = [tensor_to_pil((pictures.images[: len(method.prompts)] + 1) / 2)]
    rows += [
        ldm_core.Sampler(model).txt2img(method.prompts, **options) for model in (ldm_core.load(), learned)
    ]
    grid(rows, rows=["learned from", "before", "after"], labels=[[], method.prompts, []]).save(output)
    print(f"saved {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", nargs="?", choices=METHODS, default="lora")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", default="fine_tune.png")
    parser.add_argument("--folder", type=Path, help="keeps what was learned")
    args = parser.parse_args()
    chosen = METHODS[args.method]
    chosen.steps = args.steps or chosen.steps
    chosen.rate = args.rate or chosen.rate
    with TemporaryDirectory() as temporary:
        main(args.method, chosen, args.output, args.folder or Path(temporary), args.seed)
