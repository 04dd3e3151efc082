"""Compile every tile of the attention kernels for each chip, and write docs/attention-table.md.

python docs/attention_table.py                    all tiles; a quarter of an hour on two cores
python docs/attention_table.py --check            compile all tiles and compare them with the page
python docs/attention_table.py --check --quick    compile and compare a few tiles

No GPU is needed: Triton compiles to PTX, and NVIDIA's assembler, which Triton includes, reports the registers
per thread and the bytes spilled to memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from ldm_core.kernels.flash_backward import flash_backward_keys, flash_backward_queries
from ldm_core.kernels.flash_forward import flash_forward
from ldm_core.kernels.tiles import Tile, backward_tiles, forward_tile, split

PAGE = Path(__file__).with_name("attention-table.md")
SIZES = (32, 40, 48, 64, 72, 80, 96, 128, 160, 512)
VERSION = f"Compiled by Triton {triton.__version__}:"
INTRO = """# The tiles of the attention kernels

`python docs/attention_table.py` compiles every tile of [`tiles.py`](../ldm_core/kernels/tiles.py) and writes
this page; [attention.md](attention.md) explains the kernels. Registers are per thread, of at most 255. Each
number is the larger of causal and not causal. float32 has no tensor-core instruction of full precision, so it
multiplies by `fma`.
"""
HEAD = (
    "| kernel | D | type | chip | queries x keys | warps | stages | registers | spilled bytes | shared "
    "| multiplies by |\n"
)
CHIPS = (80, 89, 90, 120)
# The shared memory of one program in KiB (CUDA C++ programming guide, technical specifications). sm_80 has
# 163, but its tiles are also used on sm_86, 89 and 120, which have 99.
SHARED_KIB = {80: 99, 89: 99, 90: 227, 120: 99}
KERNELS: dict[str, Any] = {
    "forward": flash_forward,
    "dQ": flash_backward_queries,
    "dK, dV": flash_backward_keys,
}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
QUICK = [
    ("forward", 40, "fp16", 80),
    ("forward", 160, "fp16", 90),
    ("dQ", 64, "fp16", 90),
    ("forward", 80, "fp32", 90),
]


@dataclass(frozen=True)
class Row:
    """The compiler's figures for one tile, the larger of causal and not causal."""

    kernel: str
    size: int
    kind: str
    chip: int
    tile: Tile
    registers: int
    spilled: int
    shared: int
    instruction: str

    def __str__(self) -> str:
        tile = self.tile
        cells = [self.kernel, self.size, self.kind, f"sm_{self.chip}", f"{tile.queries} x {tile.keys}"]
        cells += [tile.warps, tile.stages, self.registers, self.spilled, f"{self.shared / 1024:.0f} KiB"]
        return f"| {' | '.join(map(str, cells))} | {self.instruction} |"


def tile_of(kernel: str, size: int, kind: str, chip: int) -> Tile:
    if kernel == "forward":
        return forward_tile(size, TYPES[kind], chip)
    return backward_tiles(size, TYPES[kind])[kernel == "dK, dV"]


def signature(function: Any, constants: dict[str, Any], kind: str) -> tuple[dict[str, str], dict[Any, Any]]:
    """The types of a kernel's arguments; pointers are multiples of 16 bytes, as PyTorch allocates."""
    types, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in ("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v", "lse", "delta"):
            types[name] = "*fp32" if name in ("lse", "delta") else f"*{kind}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if name in ("scale", "root") else "i32"
    return types, attributes


def compiled(kernel: str, size: int, kind: str, chip: int, causal: bool) -> tuple[int, int, int, str]:
    """(registers per thread, bytes spilled, bytes of shared memory, multiplication instruction)."""
    tile, (wide, rest) = tile_of(kernel, size, kind, chip), split(size)
    constants = {"D": size, "WIDE": wide, "REST": rest, "UNIT": 8, "CAUSAL": causal}
    constants |= {"BLOCK_Q": tile.queries, "BLOCK_K": tile.keys}
    types, attributes = signature(KERNELS[kernel], constants, kind)
    source = ASTSource(KERNELS[kernel], types, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=tile.options())
    ptx = binary.asm["ptx"]
    found = re.search(r"\.target (sm_\w+)", ptx)
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(chip).path, "-v", "--gpu-name", found[1], str(path), "-o", str(path) + ".cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (
        re.search(r"Used (\d+) registers", report),
        re.search(r"(\d+) bytes spill stores", report),
    )
    assert registers is not None, report
    assert spilled is not None, report
    instruction = next((name for name in ("wgmma", "mma.sync") if name in ptx), "fma")
    return int(registers[1]), int(spilled[1]), binary.metadata.shared, instruction


def row(kernel: str, size: int, kind: str, chip: int) -> Row:
    results = [compiled(kernel, size, kind, chip, causal) for causal in (False, True)]
    registers, spilled, shared = (max(result[i] for result in results) for i in range(3))
    return Row(
        kernel, size, kind, chip, tile_of(kernel, size, kind, chip), registers, spilled, shared, results[0][3]
    )


def wrong_with(row: Row) -> Iterator[str]:
    """The reasons why a tile would be slow or impossible on its chip."""
    if row.spilled:
        yield f"{row.spilled} bytes spilled"
    if row.shared > SHARED_KIB[row.chip] * 1024:
        yield f"{row.shared} bytes of shared memory, of {SHARED_KIB[row.chip]} KiB"
    if (row.instruction == "fma") != (row.kind == "fp32"):
        yield f"multiplies by {row.instruction}"


def configurations() -> Iterator[tuple[str, int, str, int]]:
    """All tiles. Two chips suffice for bfloat16 (tiles of float16) and float32 (one tile for all chips)."""
    for kernel in KERNELS:
        for kind, chips in (("fp16", CHIPS), ("bf16", (80, 90)), ("fp32", (80, 90))):
            for chip in chips:
                for size in SIZES if kind != "bf16" or kernel == "forward" else ():
                    yield kernel, size, kind, chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    wanted = QUICK if args.quick else list(configurations())
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(row, *zip(*wanted)):
            print(result, flush=True)
            rows.append(result)
    wrong = [f"{result}: {reason}" for result in rows for reason in wrong_with(result)]
    if args.check or args.quick:
        page = PAGE.read_text(encoding="utf-8")
        if VERSION in page:  # another version of the compiler gives other numbers
            wrong += [f"not in {PAGE.name}: {result}" for result in rows if str(result) not in page]
    else:
        table = HEAD + "|---" * 11 + "|\n" + "".join(f"{result}\n" for result in rows)
        PAGE.write_text(f"{INTRO}\n{VERSION}\n\n{table}", encoding="utf-8")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
