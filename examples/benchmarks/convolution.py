"""The 3x3 convolutions of SD1's U-Net and autoencoder: PyTorch's own and this package's Winograd.

    python examples/benchmarks/convolution.py [--dtype float32] [--divide 1]

"winograd" transforms the weights at every call, "winograd, prepared" has them transformed, and "packed" has
them in oneDNN's layout. GFLOP/s count
the direct convolution's 18 operations for each pixel and pair of channels, so that Winograd's, which needs
fewer, can be more than the machine's. Errors are from the direct convolution in float64, for the same
rounded inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from networks import noise
from side_by_side import Case, options, run
from torch import Tensor

from ldm_core.nn import onednn
from ldm_core.nn.winograd import transform_weight, winograd_conv2d

SIZES = [  # of which network, batch, channels in and out, rows and columns
    ("U-Net", 2, 320, 320, 64),
    ("U-Net", 2, 960, 320, 64),
    ("U-Net", 2, 640, 640, 32),
    ("U-Net", 2, 1920, 640, 32),
    ("U-Net", 2, 1280, 1280, 16),
    ("U-Net", 2, 2560, 1280, 8),
    ("decoder", 1, 512, 512, 64),
    ("decoder", 1, 512, 512, 128),
    ("decoder", 1, 256, 256, 256),
]
Arguments = tuple[Tensor, Tensor, Tensor]  # x (B, C, h, w), weight (O, C, 3, 3), bias (O,)


def direct(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, bias, padding=1)


def channels_last(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    form = torch.channels_last
    return direct(x.contiguous(memory_format=form), weight.contiguous(memory_format=form), bias)


def winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    return lambda: winograd_conv2d(x, transform_weight(weight), bias)


def prepared(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    transformed = transform_weight(weight)
    return lambda: winograd_conv2d(x, transformed, bias)


def packed(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    x, stored = x.contiguous(memory_format=torch.channels_last), onednn.pack_convolution(weight, x.shape)
    return lambda: onednn.packed_convolution(x, stored, bias)


WAYS = {
    "direct": direct,
    "direct, channels-last": channels_last,
    "winograd": winograd,
    "winograd, prepared": prepared,
    "packed": packed,
}


def inputs(batch: int, channels: int, out: int, pixels: int, dtype: str) -> Arguments:
    weight = noise(out, channels, 3, 3) / (9 * channels) ** 0.5
    x = noise(batch, channels, pixels, pixels, dtype=dtype)
    return x, weight.to(x.dtype), noise(out, dtype=dtype)


def exact(arguments: Arguments) -> Tensor:
    x, weight, bias = (a.double() for a in arguments)
    return F.conv2d(x, weight, bias, padding=1)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for network, batch, channels, out, full in SIZES:
        pixels = max(4, full // args.divide)
        size = (batch, channels // args.thin, out // args.thin, pixels)
        for dtype in args.dtype:
            yield Case(
                name=f"{network}: {batch}×{size[1]}×{pixels}×{pixels} to {size[2]}",
                candidates={
                    name: partial(lambda way, size, dtype: way(*inputs(*size, dtype)), way, size, dtype)
                    for name, way in WAYS.items()
                },
                peer="direct",
                dtype=dtype,
                operations=18 * batch * size[1] * size[2] * pixels**2,
                exact=partial(lambda size, dtype: exact(inputs(*size, dtype)), size, dtype),
            )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--divide", type=int, default=1, help="divide rows and columns, for a quick look")
    parser.add_argument("--thin", type=int, default=1, help="divide the channels, too")
    args = parser.parse_args()
    run("convolution", cases(args), args)


if __name__ == "__main__":
    main()
