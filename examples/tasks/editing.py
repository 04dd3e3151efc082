"""Edit a picture as an instruction says, with InstructPix2Pix: from left to right, the picture's scale grows.

python examples/tasks/editing.py instruct-pix2pix-00-22000.ckpt photo.png "make it winter"
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
    parser.add_argument("instruction")
    parser.add_argument("--scale", type=float, default=7.5, help="of the instruction")
    parser.add_argument("--image-scales", type=float, nargs="+", default=[1.2, 1.5, 1.8])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="edited.png")
    args = parser.parse_args()

    sampler = ldm_core.Sampler(ldm_core.load(args.model), ldm_core.EulerAncestral())
    pictures = []
    for image_scale in args.image_scales:
        pictures += sampler.edit(
            Image.open(args.image),
            args.instruction,
            image_guidance_scale=image_scale,
            guidance_scale=args.scale,
            steps=args.steps,
            seed=args.seed,
        )
    make_grid([pictures]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
