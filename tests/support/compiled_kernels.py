"""The fused group norm and GEGLU kernels, compiled for each chip: test_kernels.py runs this file.

In a process of its own, since the kernels must not have been imported for the interpreter before.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ldm_core.kernels.geglu import BLOCK, geglu_rows
from ldm_core.kernels.group_norm_silu import TILE, WARPS, normalise_tile, tile_moments

STATISTICS = ("means", "squares", "mean_out", "rstd_out")
POINTERS = (*STATISTICS, "x", "out", "weight", "bias")
BLOCKS = {"G_CHANNELS": 10, "BLOCK_C": 16, "BLOCK_P": TILE // 16}  # 320 channels in 32 groups
KERNELS: list[tuple[Any, dict[str, int]]] = [
    (tile_moments, BLOCKS),
    (normalise_tile, BLOCKS | {"BLOCK_T": 16}),
    (geglu_rows, {"BLOCK": BLOCK}),
]


def argument(name: str, constants: dict[str, int], kind: str) -> str:
    if name in constants:
        return "constexpr"
    if name in POINTERS:
        return "*fp32" if name in STATISTICS else f"*{kind}"
    return "fp32" if name == "eps" else "i32"


CHIPS, KINDS = (80, 90, 120), ("fp16", "bf16", "fp32")
# Each pair of kernel, chip and type by default, each of their 27 combinations in the slow run.
CASES = [
    pytest.param(*KERNELS[k], CHIPS[c], KINDS[d], marks=[pytest.mark.slow] if (k + c + d) % 3 else [])
    for k, c, d in itertools.product(range(3), repeat=3)
]


@pytest.mark.parametrize(("kernel", "constants", "chip", "kind"), CASES)
def test_it_compiles(kernel: Any, constants: dict[str, int], chip: int, kind: str) -> None:
    types = {name: argument(name, constants, kind) for name in kernel.arg_names}
    target, options = GPUTarget("cuda", chip, 32), {"num_warps": WARPS, "enable_fp_fusion": True}
    binary = triton.compile(ASTSource(kernel, types, constants), target=target, options=options)
    assert binary.metadata.shared <= 48 * 1024
