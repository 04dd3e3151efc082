"""From a sketch and words to pictures, at several strengths.

The picture is noised part of the way and sampled back with the prompt (SDEdit, arXiv:2108.01073). Small
strengths keep the sketch; at 1 nothing of it is left but the size.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw

import ldm_core
from ldm_core.images import open_picture
from ldm_core.watch import make_grid


def sketch(size: int) -> Image.Image:
    """A face with ears as a child would draw it: flat orange, two dots and a line."""
    s = size / 64
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    draw.polygon([(10 * s, 4 * s), (10 * s, 34 * s), (34 * s, 16 * s)], fill="#ffa51f")
    draw.polygon([(54 * s, 4 * s), (54 * s, 34 * s), (30 * s, 16 * s)], fill="#ffa51f")
    draw.ellipse((7 * s, 12 * s, 57 * s, 58 * s), fill="#ffa51f")
    draw.ellipse((20 * s, 26 * s, 26 * s, 34 * s), fill="#402000")
    draw.ellipse((38 * s, 26 * s, 44 * s, 34 * s), fill="#402000")
    draw.line([(24 * s, 45 * s), (40 * s, 45 * s)], fill="#402000", width=round(3 * s))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="grinning cat")
    parser.add_argument("--image", help="a picture to start from, instead of the sketch")
    parser.add_argument("--output", default="img2img.png")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1, 0.4, 0.9, 1.0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = ldm_core.load()
    sampler = ldm_core.Sampler(model)
    size = model.config.image_size
    image = open_picture(args.image).resize((size, size)) if args.image else sketch(size)
    results = [
        sampler.img2img(
            args.prompt, image, strength, steps=args.steps, guidance_scale=args.guidance, seed=args.seed
        )[0]
        for strength in args.strengths
    ]
    labels = ["the picture given", *(f"strength {strength}" for strength in args.strengths)]
    make_grid([[image, *results]], title=args.prompt, labels=[labels]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
