"""Objects in boxes with GLIGEN, and the boxes drawn over them; below, the same prompt without boxes.

python examples/tasks/boxes.py gligen-generation-text-box.bin
"""

from __future__ import annotations

import argparse
from typing import Any

import ldm_core
from ldm_core.watch import draw_boxes, make_grid

PROMPT = "a red cat and a blue ball in a garden"
# (words, x, y, width, height), in fractions of the picture
BOXES: list[Any] = [("a red cat", 0.1, 0.3, 0.4, 0.6), ("a blue ball", 0.6, 0.6, 0.3, 0.3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--until", type=float, default=0.3, help="the share of the steps with boxes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="boxes.png")
    args = parser.parse_args()

    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    inputs = {"prompt": PROMPT, "boxes": BOXES, "until": args.until}
    drawn = sampler.sample(inputs, num_images=3, steps=args.steps, seed=args.seed)
    plain = sampler.txt2img(PROMPT, num_images=3, steps=args.steps, seed=args.seed)
    make_grid([drawn, [draw_boxes(picture, BOXES) for picture in drawn], plain]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
