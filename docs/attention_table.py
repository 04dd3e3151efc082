"""Compile every tile of the attention kernels for each chip, and write docs/attention-table.md.

python docs/attention_table.py                    all tiles; a quarter of an hour on two cores
python docs/attention_table.py --check            compile all tiles and compare them with the page
python docs/attention_table.py --check --quick    compile and compare a few tiles
python docs/attention_table.py --loops            only the table of main loops at SD1's sizes

No GPU is needed: Triton compiles with NVIDIA's assembler, which it includes, and NVIDIA's tools report the
registers per thread, the bytes spilled to memory and the instructions (`attention_sass.py`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import attention_sass as sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ldm_core.kernels.flash_backward import flash_backward_keys, flash_backward_queries
from ldm_core.kernels.flash_forward import flash_forward
from ldm_core.kernels.flash_forward_tma import flash_forward_tma
from ldm_core.kernels.launch import ALWAYS
from ldm_core.kernels.tiles import SHORT, TMA, Tile, backward_tiles, forward_tile, split, tma_width

PAGE = Path(__file__).with_name("attention-table.md")
SIZES = (32, 40, 48, 64, 72, 80, 96, 128, 160, 512)
VERSION = f"Compiled by Triton {triton.__version__}:"
INTRO = """# The tiles of the attention kernels

`python docs/attention_table.py` compiles every tile of [`tiles.py`](../ldm_core/kernels/tiles.py) and writes
this page; [attention.md](attention.md) explains the kernels. Registers are per thread, of at most 255. Each
number is the larger of causal and not causal. float32 has no tensor-core instruction of full precision, so it
multiplies by `fma`.
"""
LOOP_INTRO = """## The main loop at SD1's sizes

float16, not causal. "short" tiles are for at most 1,024 queries; TMA is the kernel with descriptors. Programs
are those that a multiprocessor holds at once. Instructions, matrix products, waits for these and exponentials
are those of one warp in one block of the main loop. The clocks are those of one multiprocessor for 128 x 128
scores, if nothing waits: to issue the instructions (4 a clock) and to compute the exponentials (16 a clock).
[attention.md](attention.md#predictions) says what they predict.
"""
LOOP_HEAD = (
    "| kernel | D | chip | queries x keys | warps | stages | registers | programs | instructions | products "
    "| waits | exponentials | clocks to issue | clocks of exponentials |\n"
)
HEAD = (
    "| kernel | D | type | chip | queries x keys | warps | stages | registers | spilled bytes | shared "
    "| multiplies by |\n"
)
CHIPS = (80, 89, 90, 100, 120)
# The shared memory of one program in KiB (CUDA C++ programming guide, technical specifications). sm_80 has
# 163, but its tiles are also used on sm_86, 89 and 120, which have 99.
SHARED_KIB = {80: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MULTIPROCESSOR_KIB = {80: 164, 89: 100, 90: 228, 100: 228, 120: 100}
KERNELS: dict[str, Any] = {
    "forward": flash_forward,
    "forward, short": flash_forward,
    "forward, TMA": flash_forward_tma,
    "dQ": flash_backward_queries,
    "dK, dV": flash_backward_keys,
}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LOOPS = [
    ("forward, TMA", 40, 90),
    ("forward", 40, 90),
    ("forward", 80, 90),
    ("forward, short", 80, 90),
    ("forward", 160, 90),
    ("forward, short", 160, 90),
    ("forward", 512, 90),
    ("forward, TMA", 40, 100),
    ("forward", 80, 100),
    ("forward", 160, 100),
    ("forward", 40, 80),
    ("forward, short", 40, 80),
    ("forward, short", 80, 80),
]
T = TypeVar("T")
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


def tile_of(kernel: str, size: int, kind: str, chip: int, causal: bool = False) -> Tile:
    if kernel == "forward, TMA":
        return TMA
    if kernel.startswith("forward"):
        queries = SHORT + (kernel == "forward")
        return forward_tile(size, TYPES[kind], chip, queries=queries, causal=causal)
    return backward_tiles(size, TYPES[kind])[kernel == "dK, dV"]


def signature(function: Any, constants: dict[str, Any], kind: str) -> tuple[dict[str, str], dict[Any, Any]]:
    """The types of a kernel's arguments; pointers are multiples of 16 bytes, as PyTorch allocates."""
    types, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif function is flash_forward_tma and name in ("q", "k", "v", "out"):
            rows = constants["BLOCK_K" if name in "kv" else "BLOCK_Q"]
            types[name] = f"tensordesc<{kind}[1, 1, {rows}, {constants['WIDTH']}]>"
        elif name in ("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v", "lse", "delta"):
            types[name] = "*fp32" if name in ("lse", "delta") else f"*{kind}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if name in ("scale", "root") else "i32"
    return types, attributes


def compiled(kernel: str, size: int, kind: str, chip: int, causal: bool) -> tuple[sass.Code, int, str]:
    """(the machine code, bytes of shared memory, multiplication instruction)."""
    tile, (wide, rest) = tile_of(kernel, size, kind, chip, causal), split(size)
    constants: dict[str, Any] = {"BLOCK_Q": tile.queries, "BLOCK_K": tile.keys}
    if KERNELS[kernel] is flash_forward_tma:
        constants |= {"WIDTH": tma_width(size)}
    else:
        constants |= {"D": size, "WIDE": wide, "REST": rest, "UNIT": 8, "CAUSAL": causal}
    types, attributes = signature(KERNELS[kernel], constants, kind)
    source = ASTSource(KERNELS[kernel], types, constants, attributes)
    options = {**tile.options(), **ALWAYS}
    binary = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    names = ("wgmma", "tcgen05.mma", "mma.sync")
    instruction = next((name for name in names if name in binary.asm["ptx"]), "fma")
    return sass.read(binary.asm["cubin"]), binary.metadata.shared, instruction


def row(kernel: str, size: int, kind: str, chip: int) -> Row:
    masks = (False,) if kernel in ("forward, short", "forward, TMA") else (False, True)
    results = [compiled(kernel, size, kind, chip, causal) for causal in masks]
    registers = max(code.registers for code, _, _ in results)
    spilled = max(code.stack for code, _, _ in results)
    shared = max(shared for _, shared, _ in results)
    tile = tile_of(kernel, size, kind, chip)
    return Row(kernel, size, kind, chip, tile, registers, spilled, shared, results[0][2])


def loop(kernel: str, size: int, chip: int) -> str:
    """A row of the table of main loops."""
    tile = tile_of(kernel, size, "fp16", chip)
    code, shared, _ = compiled(kernel, size, "fp16", chip, False)
    blocks = 128 * 128 / (tile.queries * tile.keys)
    issue = blocks * code.instructions * tile.warps / sass.WARPS_ISSUED_A_CLOCK
    exponentials = blocks * code.exponentials * tile.warps * 32 / sass.EXPONENTIALS_A_CLOCK
    held = sass.programs(code, tile.warps, shared, MULTIPROCESSOR_KIB[chip] * 1024)
    cells = [
        kernel,
        size,
        f"sm_{chip}",
        f"{tile.queries} x {tile.keys}",
        tile.warps,
        tile.stages,
        code.registers,
    ]
    cells += [held, code.instructions, code.products, code.waits, code.exponentials]
    return f"| {' | '.join(map(str, cells))} | {issue:.0f} | {exponentials:.0f} |"


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
    for kernel in ("forward", "dQ", "dK, dV"):
        for kind, chips in (("fp16", CHIPS), ("bf16", (80, 90)), ("fp32", (80, 90))):
            for chip in chips:
                for size in SIZES if kind != "bf16" or kernel == "forward" else ():
                    yield kernel, size, kind, chip
    for chip in CHIPS:
        for size in SIZES:
            if tile_of("forward, short", size, "fp16", chip) != tile_of("forward", size, "fp16", chip):
                yield "forward, short", size, "fp16", chip
    for kind, chip, size in itertools.product(("fp16", "bf16"), (90, 100), (16, 32, 64)):
        yield "forward, TMA", size, kind, chip


def written(intro: str, head: str, rows: list[str]) -> str:
    return f"{intro}\n{VERSION}\n\n{head}{'|---' * (head.count('|') - 1)}|\n" + "".join(
        f"{r}\n" for r in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    wanted = QUICK if args.quick else [] if args.loops else list(configurations())
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = [shown(result) for result in pool.map(row, *zip(*wanted))] if wanted else []
        loops = [shown(result) for result in pool.map(loop, *zip(*(LOOPS[:1] if args.quick else LOOPS)))]
    wrong = [f"{result}: {reason}" for result in rows for reason in wrong_with(result)]
    page = PAGE.read_text(encoding="utf-8")
    if args.check or args.quick:
        if VERSION in page:  # another version of the compiler gives other numbers
            wrong += [f"not in {PAGE.name}: {line}" for line in (*rows, *loops) if str(line) not in page]
    else:
        tiles, _, _ = page.partition(LOOP_INTRO.partition("\n")[0])
        if rows:
            tiles = written(INTRO, HEAD, [str(line) for line in rows]) + "\n"
        PAGE.write_text(tiles + written(LOOP_INTRO, LOOP_HEAD, loops), encoding="utf-8")
    sys.exit("\n".join(wrong) or 0)


def shown(result: T) -> T:
    print(result, flush=True)
    return result


if __name__ == "__main__":
    main()
