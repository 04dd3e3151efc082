"""The tile of each head size on each chip, in static tables, so that nothing is tuned at run time.

The tiles were chosen by compilation, not by measurement: by the registers, and so how many programs a
multiprocessor holds, by spilled bytes, and by the instructions of a block. docs/attention-table.md lists the
compiler's figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

LARGEST = 512
SHORT = 1024  # up to so many queries, blocks of 128 would leave multiprocessors without a program


@dataclass(frozen=True)
class Tile:
    """The size of a block of queries and a block of keys, and the launch options."""

    queries: int
    keys: int
    warps: int  # of 32 threads
    stages: int  # pipeline depth: one block is computed while the others are loaded
    registers: int | None = None  # limit per thread, where the compiler's default limit would spill

    def options(self) -> dict[str, int]:
        """Options of Triton's compiler."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


Table = dict[int, Tile]  # by head size

# Ampere's data-centre chip (8.0).
FORWARD: Table = {
    32: Tile(128, 64, 4, 3),
    40: Tile(128, 32, 4, 3, registers=255),
    48: Tile(128, 64, 4, 2),
    64: Tile(128, 64, 4, 3),
    72: Tile(128, 32, 4, 3),
    80: Tile(128, 32, 4, 3),
    96: Tile(128, 32, 4, 3),
    128: Tile(128, 64, 8, 3),
    160: Tile(128, 32, 8, 2),
    512: Tile(64, 16, 8, 1),
}
FORWARD_SHORT: Table = {64: Tile(64, 64, 4, 3), 80: Tile(64, 32, 4, 3)}
# Consumer Ampere, Ada and consumer Blackwell (8.6, 8.9, 12.x): 99 KiB of shared memory; the assembler spills
# a few tiles that fit in registers for 8.0.
FORWARD_SMALLER: Table = {
    **FORWARD,
    48: Tile(128, 32, 4, 3, registers=255),
    64: Tile(128, 64, 8, 3),
    96: Tile(128, 32, 8, 3),
    160: Tile(128, 16, 8, 2),
    512: Tile(32, 16, 8, 1),
}
# Hopper (9.0): 227 KiB of shared memory, from which it multiplies 64 rows at a time.
FORWARD_HOPPER: Table = {
    32: Tile(128, 128, 8, 3),
    40: Tile(128, 64, 8, 3),
    48: Tile(128, 128, 8, 3),
    64: Tile(128, 128, 8, 3),
    72: Tile(128, 128, 8, 2),
    80: Tile(128, 128, 8, 2),
    96: Tile(128, 128, 8, 2),
    128: Tile(128, 128, 8, 2),
    160: Tile(128, 64, 8, 3),
    512: Tile(64, 32, 8, 1),
}
FORWARD_SHORT_HOPPER: Table = {80: Tile(64, 64, 4, 3), 160: Tile(64, 64, 4, 2)}
# Data-centre Blackwell (10.x): as Hopper, and accumulators in a memory of their own.
FORWARD_BLACKWELL: Table = {**FORWARD_HOPPER, 512: Tile(32, 16, 8, 1)}
# Hopper and data-centre Blackwell, with descriptors: heads of at most 64, padded to a power of two.
TMA = Tile(64, 128, 4, 2)
BACKWARD_QUERIES: Table = {
    64: Tile(64, 64, 4, 2),
    128: Tile(64, 64, 8, 2),
    160: Tile(64, 32, 8, 2),
    512: Tile(16, 16, 8, 1),
}
BACKWARD_KEYS: Table = {
    48: Tile(64, 64, 4, 2),
    64: Tile(32, 64, 4, 2),
    96: Tile(32, 64, 8, 2),
    128: Tile(64, 64, 8, 2),
    160: Tile(16, 64, 8, 2),
    512: Tile(16, 16, 8, 1),
}
# float32: no tensor cores keep its 24 bits, so these use plain multiply-adds, and twice the bytes.
FORWARD_32: Table = {
    64: Tile(64, 32, 8, 2),
    128: Tile(32, 32, 8, 1),
    160: Tile(16, 16, 8, 1),
    512: Tile(8, 16, 8, 1),
}
BACKWARD_QUERIES_32: Table = {
    64: Tile(32, 32, 4, 1),
    96: Tile(32, 32, 8, 1),
    128: Tile(32, 32, 8, 1, registers=255),
    160: Tile(32, 32, 8, 1),
    512: Tile(8, 8, 4, 1),
}
BACKWARD_KEYS_32: Table = {
    64: Tile(32, 32, 4, 1),
    128: Tile(32, 32, 8, 1),
    160: Tile(16, 32, 8, 1),
    512: Tile(8, 8, 4, 1, registers=255),
}


def split(d: int) -> tuple[int, int]:
    """A head size as a power of two and the rest, rounded up to one: 40 -> (32, 16), 64 -> (64, 0)."""
    wide = max(16, 1 << (d.bit_length() - 1))  # a dot product needs at least 16 elements
    rest = d - wide
    return wide, max(16, 1 << (rest - 1).bit_length()) if rest > 0 else 0


def capability(device: torch.device) -> int:
    """80 for compute capability 8.0, and so on. The interpreter, on a CPU, uses the tiles of 80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile_for(table: Table, d: int) -> Tile:
    """The tile of the smallest listed head size that is at least d."""
    if d > LARGEST:
        raise ValueError(f"attention backend 'triton': heads of at most {LARGEST}, got {d}")
    return table[min(size for size in table if size >= d)]


def tma_tile(d: int, dtype: torch.dtype, chip: int) -> Tile | None:
    """The tile of the kernel with descriptors, where the chip can run it and it has the better figures."""
    return TMA if chip // 10 in (9, 10) and d <= 64 and dtype != torch.float32 else None


def tma_width(d: int) -> int:
    """The columns of a tile with descriptors: d rounded up to a power of two, at least 16."""
    return max(16, 1 << (d - 1).bit_length())


def forward_tile(
    d: int, dtype: torch.dtype, chip: int, *, queries: int = SHORT + 1, causal: bool = False
) -> Tile:
    """The tile for `queries` queries. Only the causal kernel has limits of registers, and no short tiles."""
    if chip < 80:
        raise ValueError(
            f"attention backend 'triton' needs compute capability 8.0 or newer, this GPU has {chip / 10}"
        )
    if dtype == torch.float32:
        return tile_for(FORWARD_32, d)
    long, short = FORWARD_SMALLER, {}
    if chip == 80:
        long, short = FORWARD, FORWARD_SHORT
    elif chip // 10 == 9:
        long, short = FORWARD_HOPPER, FORWARD_SHORT_HOPPER
    elif chip // 10 == 10:
        long = FORWARD_BLACKWELL
    if causal:
        return tile_for(long, d)
    few = queries <= SHORT and d <= max(short, default=0)
    return replace(tile_for(short if few else long, d), registers=None)


def backward_tiles(d: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """The tiles for the gradient of the queries and for the gradients of keys and values."""
    if dtype == torch.float32:
        return tile_for(BACKWARD_QUERIES_32, d), tile_for(BACKWARD_KEYS_32, d)
    return tile_for(BACKWARD_QUERIES, d), tile_for(BACKWARD_KEYS, d)
