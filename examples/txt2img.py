"""From words to pictures: the ten lines that most people come for.

One prompt is saved as the picture itself; several as a labelled sheet of four to a row. Image k of a call
is drawn with seed + k, or with the k-th of a list of seeds, and is the same alone as in any batch.
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.watch import make_grid

COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="*", default=["grinning cat"])
    parser.add_argument("--output", default="txt2img.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one, or one per prompt")
    parser.add_argument("--columns", type=int, default=COLUMNS, help="pictures in a row of the sheet")
    args = parser.parse_args()
    seeds = args.seeds * len(args.prompt) if len(args.seeds) == 1 else args.seeds

    sampler = ldm_core.Sampler(ldm_core.load(), scheduler=ldm_core.DDIM())
    images = sampler.txt2img(args.prompt, steps=args.steps, guidance_scale=args.guidance, seed=seeds)

    if len(images) == 1:
        images[0].save(args.output)
    else:
        labels = [f"{prompt}\nseed {seed}" for prompt, seed in zip(args.prompt, seeds)]
        starts = range(0, len(images), args.columns)
        rows = [images[i : i + args.columns] for i in starts]
        make_grid(rows, labels=[labels[i : i + args.columns] for i in starts]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
