"""Pictures from noise alone, by an unconditional model such as celeba256 or lsun_churches256.

python examples/tasks/unconditional.py celeba256.ckpt
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--number", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="unconditional.png")
    args = parser.parse_args()

    # eta=1 adds noise in every step, as CompVis's script does for these models.
    sampler = ldm_core.Sampler(ldm_core.load(args.model), ldm_core.DDIM(eta=1.0), batch_size=4)
    pictures = sampler.sample(num_images=args.number, steps=args.steps, seed=args.seed)
    make_grid([pictures[i : i + 4] for i in range(0, len(pictures), 4)]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
