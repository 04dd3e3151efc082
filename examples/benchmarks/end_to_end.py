"""A picture from a prompt, 20 steps with guidance: `Sampler` and diffusers' `StableDiffusionPipeline`.

    python examples/benchmarks/end_to_end.py [--steps 20] [--pixels 512] [--rounds 2] [--memory]
    python examples/benchmarks/end_to_end.py --only ldm_core                    (24 GB is too little for all)
    python examples/benchmarks/end_to_end.py --model bundled --pixels 64        (seconds)

Same weights (random ones for SD1, whose speed they do not change), same noise, same DDIM, no progress bar;
from the prompt to the picture as float32 numbers on the CPU. Errors are differences from diffusers' picture
in the same type.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from networks import MODELS, noise
from side_by_side import Case, options, run
from support.reference import SCHEDULE, random_model, reference_parts
from torch import Tensor

import ldm_core
from ldm_core.loading.diffusers_config import PREDICTIONS

PROMPT = "a photograph of an astronaut riding a horse"


def model_of(args: argparse.Namespace) -> ldm_core.LatentDiffusion:
    return ldm_core.load(dtype=torch.float32) if args.model == "bundled" else random_model(MODELS[args.model])


def start(model: ldm_core.LatentDiffusion, args: argparse.Namespace, dtype: str = "float32") -> Tensor:
    side = args.pixels // model.config.autoencoder.downsampling
    return noise(1, model.config.unet.in_channels, side, side, dtype=dtype)


def ours(args: argparse.Namespace, dtype: str, optimized: bool) -> Callable[[], Tensor]:
    model = model_of(args).to(dtype=getattr(torch, dtype))
    if optimized:
        ldm_core.optimize(model)
    return partial(
        ldm_core.Sampler(model, ldm_core.DDIM()).txt2img,
        PROMPT,
        steps=args.steps,
        guidance_scale=7.5,
        height=args.pixels,
        width=args.pixels,
        noise=start(model, args),
        output="tensor",
    )


def theirs(args: argparse.Namespace, dtype: str) -> Callable[[], Tensor]:
    model = model_of(args)
    latents = start(model, args, dtype)
    predicts = {ours: theirs for theirs, ours in PREDICTIONS.items()}[model.config.prediction]
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=predicts)
    pipeline = StableDiffusionPipeline(**reference_parts(model), scheduler=scheduler)
    pipeline.to(getattr(torch, dtype)).set_progress_bar_config(disable=True)
    draw = partial(
        pipeline,
        PROMPT,
        height=args.pixels,
        width=args.pixels,
        num_inference_steps=args.steps,
        guidance_scale=7.5,
        latents=latents,
        output_type="pt",
    )
    return lambda: draw().images.float()


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for dtype in args.dtype:
        candidates = {
            "ldm_core": partial(ours, args, dtype, optimized=False),
            "ldm_core, optimized": partial(ours, args, dtype, optimized=True),
            "diffusers": partial(theirs, args, dtype),
        }
        yield Case(
            name=f"{args.model}, {args.pixels}×{args.pixels}, {args.steps} steps",
            candidates=candidates,
            peer="diffusers",
            dtype=dtype,
            warm=args.steps < 10,
        )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=[*MODELS, "bundled"], default="sd1")
    parser.add_argument("--pixels", type=int, default=512, help="height and width")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    run("end_to_end", cases(args), args)


if __name__ == "__main__":
    main()
