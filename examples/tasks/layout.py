"""A picture from labelled boxes with layout2img-openimages256, and the boxes drawn over it.

python examples/tasks/layout.py layout2img256.ckpt
"""

from __future__ import annotations

import argparse
from typing import Any

import ldm_core
from ldm_core.watch import draw_boxes, make_grid

# (class, x, y, width, height), in fractions of the picture; the classes are those of the training data.
LAYOUT: list[Any] = [(10, 0.05, 0.45, 0.4, 0.5), (42, 0.5, 0.2, 0.45, 0.75), (7, 0.0, 0.0, 1.0, 0.4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="layout.png")
    args = parser.parse_args()

    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    pictures = sampler.sample([LAYOUT], num_images=3, steps=args.steps, seed=args.seed)
    make_grid([pictures, [draw_boxes(picture, LAYOUT) for picture in pictures]]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
