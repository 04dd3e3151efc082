"""Capabilities of this machine's CPU, which decide how some layers are computed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch


@cache
def chunks_win_in_bfloat16() -> bool:
    """Whether this CPU has AVX-512 BF16 instructions but no AMX.

    On AMD's Zen 4, which is such a CPU, chunked attention takes 0.43 to 0.78 of SDPA's time; on
    Intel's Sapphire Rapids, which has AMX, it takes 1.2 to 3.3.
    """
    known = _cpu_capabilities()
    return bool(known.get("avx512_bf16") and not known.get("amx_bf16"))


@cache
def convolves_float32_faster() -> bool:
    """Whether oneDNN's 1x1 convolution is faster than MKL's matrix product in float32.

    On AMD's Zen 4 it takes 0.70 to 0.96 of MKL's time; on Intel's Sapphire Rapids 1.06 to 1.24.
    """
    return "AMD" in str(_cpu_capabilities().get("cpu_name", ""))


@cache
def convolves_bfloat16_faster() -> bool:
    """Whether oneDNN's 1x1 convolution is faster than PyTorch's `linear` in bfloat16.

    On AMD's Zen 4 (AVX-512 BF16, no AMX) it takes 0.85 to 0.88 of the time for many rows; on Intel's Sapphire
    Rapids (AMX) 1.06 to 2.09.
    """
    return chunks_win_in_bfloat16()


@cache
def multiplies_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 (AMX), which reads weights in a layout of its own."""
    return bool(_cpu_capabilities().get("amx_bf16"))


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products (AVX-512 BF16 or AMX)."""
    known = _cpu_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _cpu_capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


@cache
def sdpa_runs_in_bfloat16() -> bool:
    """Whether SDPA's kernel runs in bfloat16 on this CPU.

    PyTorch 2.13 decides by the CPU whether to pack matrices for bfloat16 products, but packs them with the
    instructions that ATEN_CPU_CAPABILITY allows. With less than AVX-512 it raises "pack_vnni2 is only …".
    """
    return not multiplies_bfloat16() or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
