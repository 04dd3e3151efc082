"""A picture four times as large, with bsr_sr or the x4 upscaler (which also reads a prompt).

python examples/tasks/super_resolution.py bsr_sr.ckpt small.png
"""

from __future__ import annotations

import argparse

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--prompt")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="larger.png")
    args = parser.parse_args()

    with Image.open(args.image, formats=("PNG", "JPEG", "WEBP")) as file:
        small = file.convert("RGB")
    sampler = ldm_core.Sampler(ldm_core.load(args.model), ldm_core.DDIM(eta=1.0))
    large = sampler.upscale(small, args.prompt, steps=args.steps, seed=args.seed)[0]
    bicubic = small.resize(large.size, Image.Resampling.BICUBIC)
    make_grid([[bicubic, large]], labels=[["bicubic", "upscaled"]]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
