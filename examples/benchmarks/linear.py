"""The linear layers of SD1's U-Net and text encoder: PyTorch's, as 1x1 convolutions, and with packed weights.

    python examples/benchmarks/linear.py [--dtype bfloat16] [--divide 1]

Errors are from the product in float64, for the same rounded inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from networks import noise
from side_by_side import Case, options, run
from torch import Tensor

from ldm_core.nn import onednn
from ldm_core.nn.linear import BACKENDS

SIZES = [(8192, 320, 320), (8192, 320, 2560), (2048, 640, 5120), (512, 1280, 1280), (512, 1280, 10240),
         (154, 768, 768), (154, 768, 3072)]  # rows, inputs, outputs  # fmt: skip
Arguments = tuple[Tensor, Tensor, Tensor]  # x (rows, C), weight (O, C), bias (O,)


def packed(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    stored = onednn.pack_linear(weight, len(x))
    return lambda: onednn.packed_linear(x, stored, bias)


WAYS: dict[str, Callable[..., Callable[[], Tensor]]] = {
    **{name: partial(partial, function) for name, function in BACKENDS.items()},
    "packed": packed,
}


def inputs(rows: int, channels: int, out: int, dtype: str) -> Arguments:
    weight, x = noise(out, channels) / channels**0.5, noise(rows, channels, dtype=dtype)
    return x, weight.to(x.dtype), noise(out, dtype=dtype)


def exact(arguments: Arguments) -> Tensor:
    return F.linear(*(a.double() for a in arguments))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for full, channels, out in SIZES:
        size = (max(4, full // args.divide), channels, out)
        for dtype in args.dtype:
            yield Case(
                name=f"{size[0]} rows, {channels} to {out}",
                candidates={
                    name: partial(lambda way, size, dtype: way(*inputs(*size, dtype)), way, size, dtype)
                    for name, way in WAYS.items()
                },
                peer="blas",
                dtype=dtype,
                operations=2 * size[0] * channels * out,
                exact=partial(lambda size, dtype: exact(inputs(*size, dtype)), size, dtype),
            )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--divide", type=int, default=1, help="divide the rows, for a quick look")
    args = parser.parse_args()
    run("linear", cases(args), args)


if __name__ == "__main__":
    main()
