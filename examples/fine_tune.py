"""Four ways to teach the bundled model something new, each in minutes on a CPU: before and after.

    full                every weight learns a new subject, a purple creature with three eyes
    lora                a few small matrices learn a style, for whatever is drawn
    textual-inversion   one word's vectors learn what the model could draw, but had no word for: violet faces
    dreambooth          every weight learns the subject, and pictures of its class keep that what it was

The pictures to learn from are made on the spot. What was learned is saved, and the pictures after it are
drawn from that file. The sheet has pictures to learn from, and below them each prompt before and after.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageDraw

import ldm_core
from ldm_core import checkpoint, training
from ldm_core.images import image_to_tensor, tensor_to_pil
from ldm_core.training.lora import ATTENTION, FEED_FORWARD, PROJECTIONS
from ldm_core.watch import make_grid

SEEN = ["grinning face", "red apple", "cat face", "fire", "panda", "rocket", "dog face", "heart"]
SEEN += ["frog", "lion", "pizza", "cookie", "rabbit face", "strawberry", "bird", "angry face"]
CLASS = "grinning face"
INK = torch.tensor([0.95, 0.85, 0.4])[:, None].expand(3, 3) / 3  # the darker, the bluer
VIOLET = torch.eye(3)[[1, 2, 0]]  # what yellow becomes when its channels change places


@dataclass
class Method:
    """How long, how fast, on what; and the prompts that show it: of what was learned, and of other things."""

    steps: int
    rate: float
    prompts: list[str]


METHODS = {
    "full": Method(150, 2e-4, ["zorp", "zorp", "zorp", CLASS, "dog face"]),
    "lora": Method(200, 2e-3, ["tiger face", "owl", "lemon", "hamburger", "bear"]),
    "textual-inversion": Method(200, 5e-4, ["mivo", "mivo", "mivo", CLASS, "dog face"]),
    "dreambooth": Method(120, 2e-4, [f"zorp {CLASS}"] * 2 + [CLASS] * 2 + ["dog face"]),
}


def creature(pose: int, size: int) -> Image.Image:
    """The subject, drawn four times too large: purple, horned, three-eyed, here and there, tilted."""
    draw_from = torch.Generator().manual_seed(pose)
    x, y, tilt, mouth, look = (torch.rand(5, generator=draw_from) * 2 - 1).tolist()
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    for side in (-1, 1):
        horn = [(128 + side * cx, cy) for cx, cy in ((30, 70), (75, 15), (72, 90))]
        pen.polygon(horn, fill="#f2b134", outline="#7a4b00")
    pen.ellipse((32, 50, 224, 236), fill="#7b2fbf", outline="#3d1466", width=5)
    for cx, cy in ((78, 118), (128, 96), (178, 118)):
        pen.ellipse((cx - 25, cy - 25, cx + 25, cy + 25), fill="white", outline="#3d1466", width=4)
        pen.ellipse((cx - 10 + 9 * look, cy - 10, cx + 10 + 9 * look, cy + 10), fill="black")
    pen.ellipse((84, 172 - 14 * mouth, 172, 202 + 14 * mouth), fill="#c81e4a", outline="#3d1466", width=4)
    image = image.rotate(14 * tilt, Image.Resampling.BICUBIC, fillcolor="white", translate=(14 * x, 12 * y))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def subject(model: ldm_core.LatentDiffusion, caption: str) -> training.TensorDataset:
    images = [creature(pose, model.config.image_size) for pose in range(12)]
    return training.TensorDataset(torch.cat([image_to_tensor(i) for i in images]) * 2 - 1, [caption] * 12)


def recoloured(prompts: list[str], captions: list[str], colours: torch.Tensor, **draw: Any) -> Any:
    """The model's own pictures in other colours, by a matrix (3, 3) of what is missing to white."""
    images = ldm_core.Sampler(ldm_core.load()).txt2img(prompts, seed=50, output="tensor", **draw)
    images = 1 - torch.einsum("dc,bchw->bdhw", colours, 1 - images)
    return training.TensorDataset(images * 2 - 1, captions)


def learn(name: str, method: Method, batch: int, folder: Path, draw: dict[str, Any]) -> tuple[Any, Any]:
    """A model with what was learned, from the file that it was saved in, and the pictures it learned from."""
    model, file = ldm_core.load(), folder / f"{name}.safetensors"
    if name == "lora":
        pictures = recoloured(SEEN, SEEN, INK, **draw)
    elif name == "textual-inversion":
        pictures = recoloured([CLASS] * 12, method.prompts[:1] * 12, VIOLET, **draw)
    else:
        pictures = subject(model, method.prompts[0])
    samples: Any = training.CachedLatents(pictures, model.autoencoder, folder / "latents.npy")

    adapter: Any = None
    if name == "lora":
        adapter = training.TrainableLora(model, rank=8, layers=ATTENTION + FEED_FORWARD + PROJECTIONS)
    elif name == "textual-inversion":
        adapter = training.TrainableEmbedding(model, method.prompts[0], "face", vectors=4)
    dropout = 0.1 if name == "lora" else 0.0  # a style is for pictures without a prompt, too
    objective: training.Objective = training.DiffusionObjective(
        model, condition_dropout=dropout, adapter=adapter, train_text_encoder=adapter is None
    )
    if name == "dreambooth":
        drawn = training.class_images(model, CLASS, folder / "class", 32, **draw)
        prior = training.CachedLatents(drawn, model.autoencoder, folder / "prior.npy")
        samples, objective = training.PriorDataset(samples, prior), training.PriorPreservation(objective)
    settings = training.TrainingSettings(
        method.steps, batch, learning_rate=method.rate, warmup=20, ema_decay=0.98
    )
    trainer = training.Trainer(objective, samples, folder / "run", settings)
    trainer.run()
    with trainer.averaged():
        if adapter is not None:
            adapter.save(file)
        else:
            checkpoint.save(model, file)

    learned = ldm_core.load(file if adapter is None else None)
    if name == "lora":
        ldm_core.apply_lora(learned, file)
    elif name == "textual-inversion":
        ldm_core.apply_textual_inversion(learned, file)
    return learned, pictures


def main(name: str, method: Method, args: argparse.Namespace, folder: Path) -> None:
    draw = {"steps": args.draw_steps, "guidance_scale": 4.0}
    learned, pictures = learn(name, method, args.batch_size, folder, draw)
    rows = [tensor_to_pil((pictures.images[: len(method.prompts)] + 1) / 2)]
    for model in (ldm_core.load(), learned):
        rows.append(ldm_core.Sampler(model).txt2img(method.prompts, seed=args.seed, **draw))
    make_grid(rows, rows=["trained on", "before", "after"], labels=[[], method.prompts, []]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", nargs="?", choices=METHODS, default="lora")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--draw-steps", type=int, default=25, help="of each picture that is drawn")
    parser.add_argument("--seed", type=int, default=7, help="of the pictures before and after")
    parser.add_argument("--output", default="fine_tune.png")
    parser.add_argument("--folder", type=Path, help="keeps what was learned; must be there")
    args = parser.parse_args()
    chosen = METHODS[args.method]
    chosen.steps = args.steps or chosen.steps
    with TemporaryDirectory() as temporary:
        main(args.method, chosen, args, args.folder or Path(temporary))
