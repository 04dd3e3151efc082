"""Between two noises, and between two prompts.

First row: one prompt, and initial noise on the arc between two draws. The arc, not the line: a mixture of
two Gaussian draws has less noise in it than either, and the model was trained with the full amount.
Second row: one noise, and contexts on the line between those of two prompts.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import ldm_core
from ldm_core.noise import generators, randn
from ldm_core.watch import make_grid


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point at `weight` (0..1) of the way along the arc from a to b, as long as its ends."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", default=["grinning cat", "bear"], help="two prompts")
    parser.add_argument("--output", default="interpolation.png")
    parser.add_argument("--count", type=int, default=8, help="pictures in a row")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 6])
    args = parser.parse_args()
    first, second = args.prompts

    model = ldm_core.load()
    size = model.config.image_size // model.config.autoencoder.downsampling
    a, b = randn((2, model.config.unet.out_channels, size, size), generators(args.seeds))
    weights = torch.linspace(0, 1, args.count)
    options = {"steps": args.steps, "guidance_scale": args.guidance}

    sampler = ldm_core.Sampler(model)

    noises = torch.stack([slerp(a, b, float(weight)) for weight in weights])
    by_noise = sampler.txt2img(first, noise=noises, num_images=args.count, **options)

    contexts = [model.condition(prompt).context for prompt in (first, second)]  # (1, N, width)
    mixed = torch.lerp(*contexts, weights[:, None, None])  # (B, N, width)
    by_prompt = sampler.txt2img(context=mixed, noise=a.expand(args.count, -1, -1, -1), **options)

    names = (f"{first}\nseed {args.seeds[0]} to {args.seeds[1]}", f"{first}\nto {second}")
    labels = [f"{float(weight):.2f}" for weight in weights]
    make_grid([by_noise, by_prompt], rows=names, labels=[labels]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
