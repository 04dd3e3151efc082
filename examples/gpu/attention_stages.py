"""Attention at SD1's sizes beside PyTorch's kernels, and the search for the best tile of each size."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from first_day_plan import Plan, Size
from gpu_timing import replayed, rotation
from stage_report import NotHere, Row, StageReport
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm_core.attention import AttentionFunction
from ldm_core.kernels import tiles as tile_tables
from ldm_core.kernels import triton_attention
from ldm_core.kernels.tiles import Tile
from ldm_core.nn.attention_backends import math_attention

LIMITS = {"float16": 2e-3, "bfloat16": 16e-3, "float32": 1e-5}  # of the largest value
NO_KERNEL = ("No available kernel", "No viable backend")  # PyTorch's words, by version
Inputs = tuple[Tensor, Tensor, Tensor]


def sdpa(backend: SDPBackend) -> AttentionFunction:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attention


KERNELS: dict[str, AttentionFunction] = {
    "triton": triton_attention,
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
    "efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "math": sdpa(SDPBackend.MATH),
}


def attention(report: StageReport, plan: Plan) -> None:
    """Every size by every kernel in the first type, then its gradients, then the other types."""
    for dtype in plan.dtypes:
        for backward in (False, True):
            for size in plan.attention:
                if backward and not size.backward:
                    continue
                for name, kernel in KERNELS.items():
                    which = f"{size.name}, {'gradients' if backward else 'forward'}, {dtype}, {name}"
                    report.row(which, partial(_compared, size, dtype, name, kernel, backward, plan))


def _compared(
    size: Size, dtype: str, name: str, kernel: AttentionFunction, backward: bool, plan: Plan
) -> Row:
    predicted = None if backward else size.predicted.get(name)
    known: Row = {"size": size.name, "dtype": dtype, "kernel": name, "backward": backward}
    known |= {"floor_us": None if backward else size.floor, "predicted_us": predicted}
    return known | measured(size, dtype, kernel, plan, backward=backward)


def measured(size: Size, dtype: str, kernel: AttentionFunction, plan: Plan, *, backward: bool = False) -> Row:
    """Seconds and TFLOP/s of a kernel, after its result has been compared with float32's.

    With `backward`, of the result and its three gradients together, 3.5 times the operations.
    """
    sets = rotation(partial(_inputs, size, dtype, plan.device, backward), plan.device)
    call: Callable[..., Any] = partial(_with_gradients, kernel) if backward else kernel
    try:
        got = call(*sets[0])
    except RuntimeError as error:
        if any(words in str(error) for words in NO_KERNEL):
            raise NotHere("PyTorch has no such kernel for this size on this device") from None
        raise
    exact = [x.detach().float().requires_grad_(backward) for x in sets[0]]
    right = (partial(_with_gradients, math_attention) if backward else math_attention)(*exact)
    difference = _difference(got, right)
    if not difference <= LIMITS[dtype]:
        raise ArithmeticError(f"wrong result, off by {difference:.2g} of the largest value")
    del got, right, exact
    time = replayed(call, sets, plan.rounds)
    operations = size.operations * (3.5 if backward else 1)
    tflops = operations / time["seconds"] / 1e12
    return {"us": time["seconds"] * 1e6, "tflops": tflops, "spread": time["spread"], "difference": difference}


def _inputs(size: Size, dtype: str, device: str, backward: bool) -> Inputs:
    """q, k and v as the networks have them: views of (B, N, heads * D)."""
    q, k, v = (
        torch.randn(size.batch, rows, size.heads, size.d, device=device)
        .to(getattr(torch, dtype))
        .transpose(1, 2)
        .requires_grad_(backward)
        for rows in (size.n, size.m, size.m)
    )
    return q, k, v


def _with_gradients(kernel: AttentionFunction, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of q, k and v for the gradient of half the sum of its squares."""
    out = kernel(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), out.detach())


def _difference(got: Any, right: Any) -> float:
    """The largest difference over the largest value, of the worst of several tensors."""
    pairs = [(got, right)] if isinstance(got, Tensor) else zip(got, right)
    return max(float((a.float() - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs)


def tiles(report: StageReport, plan: Plan) -> None:
    """Every size by the table's tile and by each of the grid, the sizes that cost most first."""
    dtype = plan.dtypes[0]
    for size in sorted(plan.attention, key=lambda size: -(size.floor or 0) * size.calls):
        if not size.calls:
            continue  # the decoder's heads need tiles of their own
        report.row(f"{size.name}, {dtype}, the table's", partial(_tried, size, dtype, None, False, plan))
        for descriptors in (False, True) if _takes_descriptors(size, dtype, plan) else (False,):
            for tile in plan.tiles:
                name = f"{size.name}, {dtype}, {_code(tile)}{', descriptors' if descriptors else ''}"
                report.row(name, partial(_tried, size, dtype, tile, descriptors, plan))


def _takes_descriptors(size: Size, dtype: str, plan: Plan) -> bool:
    """Whether there is a kernel with tensor descriptors for this size and GPU."""
    choose = getattr(tile_tables, "tma_tile", None)
    chip = tile_tables.capability(torch.device(plan.device))
    return choose is not None and choose(size.d, getattr(torch, dtype), chip) is not None


def _tried(size: Size, dtype: str, tile: Tile | None, descriptors: bool, plan: Plan) -> Row:
    known: Row = {"size": size.name, "d": size.d, "n": size.n, "m": size.m, "calls": size.calls}
    with ExitStack() as patches:
        if tile is not None:
            used = _use(patches, tile, descriptors)
        values = measured(size, dtype, triton_attention, plan)
        if tile is not None and not used.called:
            raise NotHere("the kernel takes this size's tile from somewhere else")
    return known | {"tile": tile and astuple(tile), "descriptors": descriptors} | values


def _use(patches: ExitStack, tile: Tile, descriptors: bool) -> mock.Mock:
    """Have our kernel take this tile in place of the table's. Returns the function that gives it."""
    where = "ldm_core.kernels.flash_attention."
    if hasattr(tile_tables, "tma_tile"):
        chosen = patches.enter_context(
            mock.patch(f"{where}tma_tile", return_value=tile if descriptors else None)
        )
        if descriptors:
            return chosen
    return patches.enter_context(mock.patch(f"{where}forward_tile", return_value=tile))


def best_tiles(rows: Iterable[Row], capability: str) -> dict[str, dict[int, Tile]]:
    """By table and head size, the tile with which a step's calls take the least time together."""
    times: dict[tuple[str, int], dict[tuple[Any, ...], list[float]]] = {}
    for row in rows:
        if row.get("tile") is not None and not row.get("descriptors") and "us" in row:
            tried = times.setdefault((table_of(capability, row["n"]), row["d"]), {})
            tried.setdefault(tuple(row["tile"]), []).append(row["calls"] * row["us"])
    best: dict[str, dict[int, Tile]] = {}
    for (table, d), tried in times.items():
        most = max(map(len, tried.values()))  # a tile that failed at one size is no choice
        complete = [tile for tile, each in tried.items() if len(each) == most]
        best.setdefault(table, {})[d] = Tile(*min(complete, key=lambda tile: sum(tried[tile])))
    return best


def table_of(capability: str, queries: int) -> str:
    """The name in tiles.py of the table for a GPU, of compute capability "9.0", say, and so many queries."""
    short = queries <= getattr(tile_tables, "SHORT", 0)
    if capability == "8.0":
        return "FORWARD_SHORT" if short else "FORWARD"
    if capability.startswith("9."):
        return "FORWARD_SHORT_HOPPER" if short else "FORWARD_HOPPER"
    return "FORWARD_BLACKWELL" if capability.startswith("10.") else "FORWARD_SMALLER"


def table_rows(best: dict[int, Tile]) -> dict[int, str]:
    return {d: f"{d}: {_code(tile)}" for d, tile in sorted(best.items())}


def rewritten(text: str, table: str, best: dict[int, Tile]) -> str:
    """The text of tiles.py with these tiles in one of its tables. Raises ValueError if it is not there."""
    found = re.search(rf"^{table}: Table = ({{.*?}})$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"expected a table {table} of tiles, found none")
    literal = ast.parse(found.group(1), mode="eval").body
    assert isinstance(literal, ast.Dict)
    others, rows = [], {}
    for key, value in zip(literal.keys, literal.values):
        if key is None:
            others.append(f"**{ast.unparse(value)}")  # the table that this one extends
        else:
            rows[ast.literal_eval(key)] = f"{ast.unparse(key)}: {ast.unparse(value)}"
    lines = [*others, *dict(sorted((rows | table_rows(best)).items())).values()]
    block = "".join(f"    {line},\n" for line in lines)
    return f"{text[: found.start(1)]}{{\n{block}}}{text[found.end(1) :]}"


def write_tiles(path: Path, best: dict[str, dict[int, Tile]]) -> None:
    text = path.read_text(encoding="utf-8")
    for table, tiles in best.items():
        text = rewritten(text, table, tiles)
    path.write_text(text, encoding="utf-8")


def _code(tile: Tile) -> str:
    """The tile as tiles.py spells it."""
    more = "" if tile.registers is None else f", registers={tile.registers}"
    return f"Tile({tile.queries}, {tile.keys}, {tile.warps}, {tile.stages}{more})"
