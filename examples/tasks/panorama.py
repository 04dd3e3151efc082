"""A wide picture by a model trained on squares: windows that overlap, averaged (MultiDiffusion).

    python examples/tasks/panorama.py "red apple" --width 512

Without --model it draws with the bundled model. Bar-Tal et al. 2023, arXiv:2302.08113.
"""

from __future__ import annotations

import argparse

import ldm_core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="red apple")
    parser.add_argument("--model")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="panorama.png")
    args = parser.parse_args()

    model = ldm_core.load(args.model)
    size = model.config.image_size // model.config.autoencoder.downsampling
    wide = ldm_core.windowed(model, size=size, stride=size // 2, weights="equal")
    options = {"height": model.config.image_size, "width": args.width, "steps": args.steps}
    picture = ldm_core.Sampler(wide).txt2img(args.prompt, seed=args.seed, **options)[0]
    picture.save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
