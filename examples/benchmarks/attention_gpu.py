"""How fast this package's attention kernel is beside those that PyTorch brings, on one GPU, at SD1's sizes.

    python examples/benchmarks/attention_gpu.py [--dtype float16] [--backward]

TFLOP/s counts the two matrix products and nothing else, 4 N M D operations a head; with --backward, three and
a half times that for the result and its gradients. Each kernel gets the networks' own layout, views of
(B, N, heads * D).

The calls are captured in a CUDA graph, whose replay is timed, since Python takes longer to launch a kernel
than a GPU to run the smaller ones. The inputs rotate through more memory than the GPU's cache holds. Before
it is timed, each kernel is compared with the formula in float64 on a few rows, its result's memory filled
with NaN beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm_core.attention import AttentionFunction
from ldm_core.kernels import triton_attention

SIZES = [  # B, heads, N, M, D
    (2, 8, 4096, 4096, 40),
    (2, 8, 1024, 1024, 80),
    (2, 8, 256, 256, 160),
    (2, 8, 64, 64, 160),
    (2, 8, 4096, 77, 40),
    (2, 8, 1024, 77, 80),
    (2, 5, 4096, 4096, 64),
    (2, 10, 9216, 9216, 64),
]
CACHE_BYTES = 128 * 2**20  # more than the second-level cache of any GPU so far
ROTATIONS = 64  # at most, for the smallest inputs
ROWS = 64  # that are compared
BOUND = {torch.float16: 2e-3, torch.bfloat16: 16e-3}  # of the largest value: two roundings


def sdpa(backend: SDPBackend) -> AttentionFunction:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attention


KERNELS: dict[str, AttentionFunction] = {
    "ours": triton_attention,
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
    "efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
}


def rotations(size: tuple[int, ...]) -> int:
    """How many sets of inputs of `size` exceed the cache."""
    b, heads, n, m, d = size
    return min(ROTATIONS, math.ceil(CACHE_BYTES / (2 * b * heads * (n + 2 * m) * d)))


def inputs(size: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> list[list[Tensor]]:
    """Sets of q, k and v, (B, heads, N, D) and twice (B, heads, M, D)."""
    b, heads, n, m, d = size

    def draw() -> list[Tensor]:
        return [torch.randn(b, x, heads, d, device=device, dtype=dtype).transpose(1, 2) for x in (n, m, m)]

    return [draw() for _ in range(rotations(size))]


def difference(kernel: AttentionFunction, q: Tensor, k: Tensor, v: Tensor) -> float:
    """The error of the first and last ROWS rows, relative to the largest value; NaN if one is not written."""
    poison = torch.full_like(q, torch.nan)  # freed here, so that the allocator gives it to the result
    del poison
    out = kernel(q, k, v)
    if not out.isfinite().all():
        return math.nan
    some = torch.cat([q[:, :, :ROWS], q[:, :, -ROWS:]], dim=2).double()
    weights = (some @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    exact = weights @ v.double()
    ours = torch.cat([out[:, :, :ROWS], out[:, :, -ROWS:]], dim=2).double()
    return float((ours - exact).abs().max() / exact.abs().max())


def timed(kernel: AttentionFunction, sets: list[list[Tensor]], back: bool) -> Callable[[], object]:
    """A function that computes the next set of inputs at each call."""
    turns = itertools.cycle(sets)
    if not back:
        return lambda: kernel(*next(turns))
    d_out = torch.randn_like(sets[0][0])

    def both() -> object:
        leaves = [x.detach().requires_grad_() for x in next(turns)]
        return torch.autograd.grad(kernel(*leaves), leaves, d_out)

    return both


def speed(kernel: AttentionFunction, size: tuple[int, ...], dtype: torch.dtype, back: bool) -> str:
    from triton.testing import do_bench_cudagraph

    b, heads, n, m, d = size
    sets = inputs(size, dtype)
    try:
        error = difference(kernel, *sets[0])
        if not error <= BOUND[dtype]:
            return f"wrong: {error:.1e}"
        time = do_bench_cudagraph(timed(kernel, sets, back), return_mode="median")
    except (RuntimeError, ValueError) as failure:
        return f"no: {str(failure).splitlines()[0][:20]}"
    operations = 4 * b * heads * n * m * d * (3.5 if back else 1)
    return f"{operations / time / 1e9:.1f} ({time * 1e3:.1f} µs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--backward", action="store_true", help="time the result and its gradients")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return
    print(f"{torch.cuda.get_device_name()}, {args.dtype}, TFLOP/s")
    print(f"{'B, heads, N, M, D':26}" + "".join(f"{name:>26}" for name in KERNELS))
    for size in SIZES:
        speeds = [
            speed(kernel, size, getattr(torch, args.dtype), args.backward) for kernel in KERNELS.values()
        ]
        print(f"{', '.join(map(str, size)):26}" + "".join(f"{value:>26}" for value in speeds))


if __name__ == "__main__":
    main()
