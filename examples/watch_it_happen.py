"""From noise to a picture: a strip and an animation of the steps of one sampling.

The upper row is the latent as each step leaves it; the lower row is what the network expects, at that
step, the result to be. With --preview both are shown by a linear map instead of the decoder.
"""

from __future__ import annotations

import argparse

import ldm_core
from ldm_core.watch import fit_preview, record_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="*", default=["grinning cat"])
    parser.add_argument("--output", default="strip.png")
    parser.add_argument("--animation", default="steps.webp", help="a .gif or .webp file")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--columns", type=int, default=8, help="steps shown in the strip")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preview", action="store_true", help="show latents without the decoder")
    args = parser.parse_args()

    model = ldm_core.load()
    recorder = record_steps(
        ldm_core.Sampler(model),
        args.prompt,
        decode=fit_preview(model) if args.preview else None,
        steps=args.steps,
        guidance_scale=args.guidance,
        seed=args.seed,
    )
    recorder.strip(args.columns).save(args.output)
    recorder.save_animation(args.animation)
    print(f"saved {args.output} and {args.animation}")


if __name__ == "__main__":
    main()
