"""Schedulers by the names under which the command line and the server offer them."""

from __future__ import annotations

from typing import Any

from ldm_core.schedulers import (
    DDIM,
    DDPM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
)

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIM(),
    "ddpm": DDPM(),
    "plms": PNDM(),
    "pndm": PNDM(),
    "pndm-rk": PNDM(warmup="runge_kutta"),
    "dpm++2m": DPMSolverMultistep(),
    "dpm++2m-karras": DPMSolverMultistep(spacing="karras"),
    "unipc": UniPC(),
    "euler": Euler(),
    "euler-a": EulerAncestral(),
    "heun": Heun(),
    "lms": LMS(),
}
