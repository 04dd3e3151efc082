"""What a measurement was taken on: the processor, its instruction sets, threads, and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# Those of /proc/cpuinfo that matrix products are written for.
SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "openvino", "numpy")


def cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def instruction_sets() -> list[str]:
    info = cpuinfo()
    has = (info.get("flags") or info.get("Features") or "").split()
    return [name for name in SETS if name in has]


def has_bf16_units() -> bool:
    """Whether a product of bfloat16 numbers is an instruction here, and not a conversion to float32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets()))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    return {
        "cpu": cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": instruction_sets(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in LIBRARIES},
    }
