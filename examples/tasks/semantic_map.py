"""A landscape from a painted map of classes with semantic_synthesis256, also wider than in training.

python examples/tasks/semantic_map.py semantic_synthesis256.ckpt --width 512
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.conditioners.semantic_map import colours, paint
from ldm_core.watch import make_grid

SKY, SEA, TREE, ROCK = 156, 154, 168, 149  # COCO-Stuff's numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--classes", type=int, nargs=4, default=[SKY, SEA, TREE, ROCK])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="map.png")
    args = parser.parse_args()

    sky, sea, tree, rock = args.classes
    shapes = [
        (sea, [(0.0, 0.6), (1.0, 1.0)]),
        (rock, [(0.5, 0.65), (0.75, 0.3), (1.0, 0.65)]),
        (tree, [(0.05, 0.8), (0.2, 0.35), (0.35, 0.8)]),
    ]
    classes = paint(args.height, args.width, shapes, background=sky)
    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    pictures = sampler.sample(classes, num_images=2, steps=args.steps, seed=args.seed)
    make_grid([[colours(classes)[0].convert("RGB"), *pictures]]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
