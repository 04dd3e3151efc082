"""Variations of a picture, or of a mixture of several, by stable unCLIP.

python examples/tasks/image_variation.py sd21-unclip-h.ckpt one.png two.png --noise-level 100
"""

from __future__ import annotations

import argparse

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid


def opened(path: str) -> Image.Image:
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as file:
        return file.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", help="of one size")
    parser.add_argument("--weights", type=float, nargs="+", help="of the pictures in the mixture")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--noise-level", type=int, default=0, help="more noise gives freer variations")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="variations.png")
    args = parser.parse_args()

    images = [opened(path) for path in args.images]
    inputs = {"images": images, "prompt": args.prompt, "noise_level": args.noise_level}
    inputs |= {} if args.weights is None else {"weights": args.weights}
    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    pictures = sampler.sample(inputs, num_images=3, steps=args.steps, seed=args.seed)
    make_grid([pictures]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
