"""Repaint a part of a picture: white in the mask is painted anew, and black stays as it was, to the bit.

A picture is drawn first, so that the example needs no files; then its lower half is repainted with another
prompt and several seeds.
"""

from __future__ import annotations

import argparse

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="grinning face")
    parser.add_argument("--first", default="angry face", help="what the picture shows before")
    parser.add_argument("--box", type=float, nargs=4, default=[0.15, 0.5, 0.85, 0.85], metavar="0..1")
    parser.add_argument("--output", default="inpainting.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--first-seed", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    sampler = ldm_core.Sampler(ldm_core.load())
    options = {"steps": args.steps, "guidance_scale": args.guidance}
    image = sampler.txt2img(args.first, seed=args.first_seed, **options)[0]
    left, top, right, bottom = args.box
    width, height = image.size
    mask = Image.new("L", image.size, "black")
    mask.paste("white", (int(left * width), int(top * height), int(right * width), int(bottom * height)))

    repainted = sampler.inpaint(
        args.prompt, image, mask, num_images=len(args.seeds), seed=args.seeds, **options
    )
    labels = [f"{args.first}\nbefore", "mask\nwhite is repainted"]
    labels += [f"{args.prompt}\nseed {seed}" for seed in args.seeds]
    make_grid([[image, mask, *repainted]], labels=[labels]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
