"""The fused group norm and GEGLU kernels, compiled for each chip: test_kernels.py runs this file.

In a process of its own, since the kernels must not have been imported for the interpreter before.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ldm_core.kernels.flash_backward import flash_backward_keys, flash_backward_queries
from ldm_core.kernels.flash_forward import flash_forward
from ldm_core.kernels.geglu import BLOCK, geglu_rows
from ldm_core.kernels.group_norm_silu import (
    CHANNELS,
    MOMENTS,
    PIXELS,
    WARPS,
    merge_moments,
    normalise_tile,
    tile_moments,
)
from ldm_core.kernels.launch import ALWAYS

STATISTICS = ("means", "squares", "mean_out", "rstd_out", "rstds", "lse", "delta")
POINTERS = (*STATISTICS, "x", "out", "weight", "bias", "q", "k", "v", "d_out", "d_q", "d_k", "d_v")
TILE = {"BLOCK_P": PIXELS, "BLOCK_C": CHANNELS}
LAST, FIRST = (
    {"stride_c": 1},
    {"stride_p": 1},
)  # channels-last, contiguous; a 1 is compiled in at run time too
KERNELS: list[tuple[Any, dict[str, int]]] = [
    (tile_moments, TILE | LAST),
    (merge_moments, {"BLOCK": MOMENTS, "BLOCK_P": PIXELS}),
    (normalise_tile, TILE | LAST | {"SILU": True}),
    (geglu_rows, {"BLOCK": BLOCK}),
    (normalise_tile, TILE | FIRST | {"SILU": False}),
    (tile_moments, TILE | FIRST | {"pixels": 1}),
    (merge_moments, {"BLOCK": MOMENTS, "BLOCK_P": PIXELS, "pixels": 1, "tiles": 1, "width": 1}),
]


def types(kernel: Any, constants: dict[str, int], kind: str) -> dict[str, str]:
    """The types of a kernel's arguments, by name."""

    def argument(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in POINTERS:
            return "*fp32" if name in STATISTICS else f"*{kind}"
        return "fp32" if name in ("eps", "scale", "root") else "i32"

    return {name: argument(name) for name in kernel.arg_names}


def compiled(kernel: Any, constants: dict[str, int], chip: int, kind: str, **options: int) -> Any:
    """As `launch` compiles it; pointers are multiples of 16 bytes, and sizes and strides of 16 elements."""
    arguments = types(kernel, constants, kind)
    whole = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, type_) in enumerate(arguments.items())
        if type_[0] == "*" or name in ("stride_b", "stride_c", "stride_p", "channels")
    }
    source = ASTSource(kernel, arguments, constants, {k: v for k, v in whole.items() if k not in constants})
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options={**options, **ALWAYS})


CHIPS, KINDS = (80, 90, 100, 120), ("fp16", "bf16", "fp32")
# Each kernel once by default, for each chip and type in turn, and the other combinations in the slow run.
CASES = [
    pytest.param(*KERNELS[k], chip, kind, marks=[] if (c, d) == (k % 4, k % 3) else [pytest.mark.slow])
    for k, (c, chip), (d, kind) in itertools.product(range(len(KERNELS)), enumerate(CHIPS), enumerate(KINDS))
]


@pytest.mark.parametrize(("kernel", "constants", "chip", "kind"), CASES)
def test_it_compiles(kernel: Any, constants: dict[str, int], chip: int, kind: str) -> None:
    binary = compiled(kernel, constants, chip, kind, num_warps=WARPS)
    assert binary.metadata.shared <= 48 * 1024
    ptx = binary.asm["ptx"]
    if constants.items() >= (TILE | LAST).items() and kind != "fp32":
        assert "ld.global.v4.b32" in ptx, "16 bytes of adjacent channels are loaded at once"


def narrow_products(kernel: Any, constants: dict[str, int], strides: tuple[str, ...]) -> Iterator[str]:
    """The multiplications in 32 bits, in Triton's intermediate code, that one of these strides enters."""
    narrow = {f"%{name}" for name in strides}
    for line in compiled(kernel, constants, 80, "fp16").asm["ttir"].splitlines():
        result, _, operation = line.strip().partition(" = ")
        operands = set(re.findall(r"%\w+", operation.partition(" : ")[0]))
        if not operands & narrow:
            continue
        if operation.startswith(("tt.splat", "tt.broadcast", "tt.expand_dims")):
            narrow.add(result)
        elif operation.startswith("arith.muli") and re.search(r"(: |x)i32\b", operation):
            yield line.strip()


HEAD = {"D": 40, "WIDE": 32, "REST": 16, "UNIT": 8, "BLOCK_Q": 64, "BLOCK_K": 32, "CAUSAL": False}
PRODUCTS = [
    (tile_moments, TILE, ("stride_b", "stride_c", "stride_p")),
    (normalise_tile, TILE | {"SILU": True}, ("stride_b", "stride_c", "stride_p")),
    (flash_forward, HEAD, ("q_b", "k_b", "v_b", "o_b")),
    pytest.param(flash_backward_queries, HEAD, ("q_b", "g_b"), marks=pytest.mark.slow),
    pytest.param(flash_backward_keys, HEAD, ("q_b", "f_b"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kernel", "constants", "strides"), PRODUCTS)
def test_offsets_within_a_large_tensor_are_64_bits(
    kernel: Any, constants: dict[str, int], strides: tuple[str, ...]
) -> None:
    """256 channels of 2,896 x 2,896 pixels are 2^31 elements, and a batch for attention may have as many."""
    assert list(narrow_products(kernel, constants, strides)) == []
