"""Remove a part of a picture with inpainting_big, which reads no text.

python examples/tasks/ldm_inpainting.py inpainting_big.ckpt photo.png --box 0.3 0.3 0.7 0.7
"""

from __future__ import annotations

import argparse

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image", help="with sides that are multiples of 32")
    parser.add_argument("--box", type=float, nargs=4, default=[0.3, 0.3, 0.7, 0.7], metavar="0..1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="removed.png")
    args = parser.parse_args()

    with Image.open(args.image, formats=("PNG", "JPEG", "WEBP")) as file:
        image = file.convert("RGB")
    width, height = image.size
    left, top, right, bottom = args.box
    mask = Image.new("L", image.size, "black")
    mask.paste("white", (int(left * width), int(top * height), int(right * width), int(bottom * height)))
    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    pictures = sampler.inpaint(None, image, mask, num_images=2, steps=args.steps, seed=args.seed)
    make_grid([[image, mask, *pictures]]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
