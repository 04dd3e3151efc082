"""Pictures of ImageNet's classes with cin256-v2, at several guidance scales.

python examples/tasks/class_conditional.py cin256-v2.ckpt 207 281 "lion"
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("classes", nargs="+", help="numbers, or names in lower case")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 6.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="classes.png")
    args = parser.parse_args()

    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    classes = [int(name) if name.isdigit() else name for name in args.classes]
    rows = [
        sampler.sample(classes, guidance_scale=scale, steps=args.steps, seed=args.seed)
        for scale in args.scales
    ]
    make_grid(rows, labels=[[f"{name}, scale {s:g}" for name in args.classes] for s in args.scales]).save(
        args.output
    )
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
