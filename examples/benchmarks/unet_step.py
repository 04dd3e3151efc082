"""One call of SD1's U-Net, of which a picture takes twenty or more: this package, diffusers and OpenVINO.

    python examples/benchmarks/unet_step.py [--size 64] [--batch 2] [--compile] [--openvino] [--profile]

Batch 2 is one picture with guidance. Errors are from diffusers' output in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from networks import MODELS, PARTS, candidates, noise, operations, reference
from side_by_side import Case, options, run
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

UNET = PARTS["unet"]


def inputs_of(args: argparse.Namespace, dtype: str) -> tuple[Tensor, ...]:
    config = MODELS[args.model].unet
    x = noise(args.batch, config.in_channels, args.size, args.size, dtype=dtype)
    return x, torch.full((args.batch,), 501), noise(args.batch, 77, config.context_dim, dtype=dtype)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    config = MODELS[args.model]
    for dtype in args.dtype:
        inputs = inputs_of(args, dtype)
        yield Case(
            name=f"{args.model} U-Net, batch {args.batch}, {args.size}×{args.size} latents",
            candidates=candidates(
                UNET, config, dtype, inputs, compiled=args.compile, with_openvino=args.openvino
            ),
            peer="diffusers",
            dtype=dtype,
            operations=operations(UNET, config, inputs),
            exact=lambda: reference(UNET, config, "float32")(*inputs_of(args, "float32")),
        )


@torch.no_grad()
def show_profiles(args: argparse.Namespace) -> None:
    """Where each candidate of the first case spends its time."""
    for name, make in next(cases(args)).candidates.items():
        if args.only and name not in args.only:
            continue
        call = make()
        call()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        print(f"\n{name}\n{profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=12)}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the latents")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also diffusers under torch.compile")
    parser.add_argument("--openvino", action="store_true", help="also diffusers' network in OpenVINO")
    parser.add_argument("--profile", action="store_true", help="print the 12 costliest operators of each")
    args = parser.parse_args()
    run("unet_step", cases(args), args)
    if args.profile and not args.peak:
        show_profiles(args)


if __name__ == "__main__":
    main()
