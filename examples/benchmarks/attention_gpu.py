"""How fast this package's attention kernel is beside those that PyTorch brings, on one GPU, at SD1's sizes.

    python examples/benchmarks/attention_gpu.py [--dtype float16] [--rounds 50] [--backward]

TFLOP/s counts the two matrix products and nothing else, 4 N M D operations a head, and two and a half times
that for the gradients. Each kernel gets the networks' own layout, views of (B, N, heads * D), is warmed up,
and is timed between two events; the median of all rounds is shown.
"""

from __future__ import annotations

import argparse
import statistics
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
    (2, 8, 4096, 77, 40),
    (2, 5, 4096, 4096, 64),
    (2, 10, 9216, 9216, 64),
]


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


def milliseconds(function: Callable[[], object], rounds: int) -> float:
    for _ in range(5):
        function()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def speed(
    kernel: AttentionFunction, size: tuple[int, ...], dtype: torch.dtype, rounds: int, back: bool
) -> str:
    b, heads, n, m, d = size
    lengths = (n, m, m)
    q, k, v = (torch.randn(b, x, heads, d, device="cuda", dtype=dtype).transpose(1, 2) for x in lengths)
    operations = 4 * b * heads * n * m * d
    try:
        if back:
            inputs = [x.requires_grad_() for x in (q, k, v)]
            out = kernel(*inputs)
            d_out = torch.randn_like(out)
            time = milliseconds(lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True), rounds)
            operations = operations * 5 // 2
        else:
            time = milliseconds(lambda: kernel(q, k, v), rounds)
    except (RuntimeError, ValueError) as error:
        return f"no: {str(error).splitlines()[0][:20]}"
    return f"{operations / time / 1e9:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--backward", action="store_true", help="time the gradients instead")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return
    print(f"{torch.cuda.get_device_name()}, {args.dtype}, TFLOP/s")
    print(f"{'B, heads, N, M, D':26}" + "".join(f"{name:>26}" for name in KERNELS))
    for size in SIZES:
        speeds = [
            speed(kernel, size, getattr(torch, args.dtype), args.rounds, args.backward)
            for kernel in KERNELS.values()
        ]
        print(f"{', '.join(map(str, size)):26}" + "".join(f"{value:>26}" for value in speeds))


if __name__ == "__main__":
    main()
