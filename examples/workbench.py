"""A grid of four, variations of one of its pictures, and that picture with new surroundings.

Every file can be gone on from, here or with the command line: `python -m ldm_core vary 2 workbench.png`.
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.workbench import Grid, Workbench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="grinning cat --seed 7", help="with flags")
    parser.add_argument("--number", type=int, default=2, help="the picture to go on from")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--output", default="workbench.png")
    args = parser.parse_args()

    bench = Workbench(ldm_core.Sampler(ldm_core.load()), steps=args.steps, guidance_scale=args.guidance)
    bench.imagine(args.prompt).save(args.output)
    print(f"saved {args.output}")

    picture = Grid.open(args.output).pick(args.number)  # as another program would
    stem = args.output.removesuffix(".png")
    for name, grid in {
        "varied": bench.vary(picture, "weak", seed=20),
        "zoomed-out": bench.zoom_out(picture, 2, "framed picture --seed 1"),
    }.items():
        grid.save(f"{stem}-{name}.png")
        print(f"saved {stem}-{name}.png")


if __name__ == "__main__":
    main()
