"""This package's attention backends and PyTorch's `scaled_dot_product_attention`, at SD1's sizes on a CPU.

    python examples/benchmarks/attention.py [--dtype float32 bfloat16] [--divide 1]

The last size is the autoencoder's one head. All get the networks' own layout, views of (B, N, heads * D).
Operations are the two matrix products' 4 N M D for each head. Errors are from the formula in float64, for
the same rounded inputs. `attention_gpu.py` does the same for the kernels on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from networks import noise
from side_by_side import Case, options, run
from torch import Tensor

from ldm_core.attention import BACKENDS, AttentionFunction
from ldm_core.nn.attention_backends import math_attention

SIZES = [  # B, heads, N, M, D
    (2, 8, 4096, 4096, 40),
    (2, 8, 1024, 1024, 80),
    (2, 8, 256, 256, 160),
    (2, 8, 4096, 77, 40),
    (1, 1, 4096, 4096, 512),
]
ON_A_CPU = {name: function for name, function in BACKENDS.items() if name != "triton"}


def inputs(size: tuple[int, ...], dtype: str) -> list[Tensor]:
    b, heads, n, m, d = size
    q, k, v = noise(b, n + 2 * m, heads, d, dtype=dtype).split([n, m, m], dim=1)
    return [x.contiguous().transpose(1, 2) for x in (q, k, v)]


def exact(qkv: list[Tensor]) -> Tensor:
    """One head at a time: all the weights in float64 would take gigabytes."""
    heads = [math_attention(*(x[:, i : i + 1].double() for x in qkv)) for i in range(qkv[0].shape[1])]
    return torch.cat(heads, dim=1)


def made(backend: AttentionFunction, size: tuple[int, ...], dtype: str) -> Callable[[], Tensor]:
    return partial(backend, *inputs(size, dtype))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for b, heads, n, m, d in SIZES:
        size = (b, heads, n // args.divide, m // args.divide if m == n else m, d)
        for dtype in args.dtype:
            candidates = {name: partial(made, backend, size, dtype) for name, backend in ON_A_CPU.items()}
            yield Case(
                name=str(size),
                candidates=candidates,
                peer="sdpa",
                dtype=dtype,
                operations=4 * b * heads * size[2] * size[3] * d,
                exact=partial(exact, inputs(size, dtype)),
            )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--divide", type=int, default=1, help="shorten the sequences, for a quick look")
    args = parser.parse_args()
    run("attention", cases(args), args)


if __name__ == "__main__":
    main()
