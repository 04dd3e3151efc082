"""The scheduler of a diffusers folder, built from its `scheduler_config.json`.

The settings of the noise schedule and of the prediction type belong to the model, and `load` reads them; this
module reads the others. A missing setting has the default of diffusers' class, which may differ from ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ldm_core.schedulers.base import Scheduler
from ldm_core.schedulers.ddim import DDIM
from ldm_core.schedulers.ddpm import DDPM
from ldm_core.schedulers.dpm_solver import DPMSolverMultistep
from ldm_core.schedulers.euler import Euler
from ldm_core.schedulers.euler_ancestral import EulerAncestral
from ldm_core.schedulers.heun import Heun
from ldm_core.schedulers.lms import LMS
from ldm_core.schedulers.pndm import PNDM
from ldm_core.schedulers.unipc import UniPC

Settings = Mapping[str, Any]

# Settings that change a step, with the only value that is supported here.
_CLIPPING = {"clip_sample": False, "thresholding": False}
_CLIPS_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler")
_ONLY: dict[str, Any] = {
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "sigma_min": None,
    "sigma_max": None,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "algorithm_type": "dpmsolver++",
    "lambda_min_clipped": -math.inf,
    "predict_x0": True,
    "disable_corrector": [],
    "solver_p": None,
}
# The spacing by sigma that each setting selects.
_BY_SIGMA = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_lu_lambdas": "uniform_lambda",
}


def from_diffusers(settings: Settings) -> Scheduler:
    """Build the scheduler that these settings describe, as in
    `from_diffusers(checkpoint.read(folder).metadata["scheduler/scheduler_config.json"])`.

    Raises ValueError that names a class or a setting which is not supported.
    """
    name = settings.get("_class_name")
    if not isinstance(name, str) or name not in _MAKERS:
        raise ValueError(f"the scheduler {name!r} is not known here; expected one of {', '.join(_MAKERS)}")
    for setting, only in _CLIPPING.items():
        value = settings.get(setting, setting == "clip_sample" and name in _CLIPS_BY_DEFAULT)
        if value != only:
            raise ValueError(
                f"{name}: {setting} is {value!r}; latents have no fixed range and are not clipped here"
            )
    _require(settings, _ONLY)
    try:
        return _MAKERS[name](settings)
    except TypeError as error:
        raise ValueError(f"{name}: a setting has the wrong type: {error}") from error


def _require(settings: Settings, only: Settings) -> None:
    for setting, value in only.items():
        if settings.get(setting, value) != value:
            name, found = settings["_class_name"], settings[setting]
            raise ValueError(f"{name}: {setting} is {found!r}; here it can be {value!r} only")


def _spacing(settings: Settings, default: str = "leading") -> dict[str, Any]:
    return {
        "spacing": settings.get("timestep_spacing", default),
        "steps_offset": settings.get("steps_offset", 0),
    }


def _by_sigma(settings: Settings) -> str | None:
    chosen = [spacing for setting, spacing in _BY_SIGMA.items() if settings.get(setting)]
    if len(chosen) > 1:
        raise ValueError(f"{settings['_class_name']}: expected one spacing by sigma, got {', '.join(chosen)}")
    return chosen[0] if chosen else None


def _multistep(settings: Settings) -> dict[str, Any]:
    """Settings of DPM-Solver and UniPC, which choose n + 1 timesteps and omit the last, unless trailing."""
    spacing = _spacing(settings, "linspace")
    skip_last = spacing["spacing"] in ("linspace", "leading")
    by_sigma = _by_sigma(settings)
    if by_sigma is not None:
        spacing["spacing"], skip_last = by_sigma, False
    return {
        **spacing,
        **_final_sigma(settings),
        "skip_last": skip_last,
        "order": settings.get("solver_order", 2),
        "lower_order_final": bool(settings.get("lower_order_final", True)),
    }


def _sigma_method(settings: Settings) -> dict[str, Any]:
    """Settings of Euler, Heun and LMS, whose spacings by sigma run between the ends of timestep_spacing."""
    spacing, by_sigma = _spacing(settings, "linspace"), _by_sigma(settings)
    if by_sigma is not None:
        if spacing["spacing"] != "linspace":
            raise ValueError(
                f"{settings['_class_name']}: timestep_spacing is {spacing['spacing']!r}; with {by_sigma} "
                "sigmas it can be 'linspace' only, whose ends are the table's"
            )
        spacing["spacing"] = by_sigma
    return spacing


def _final_sigma(settings: Settings) -> dict[str, Any]:
    kind = settings.get("final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type must be 'zero' or 'sigma_min', not {kind!r}")
    return {"set_alpha_to_one": kind == "zero"}


def _ddim(settings: Settings) -> DDIM:
    return DDIM(set_alpha_to_one=bool(settings.get("set_alpha_to_one", True)), **_spacing(settings))


def _pndm(settings: Settings) -> PNDM:
    return PNDM(
        warmup="plms" if settings.get("skip_prk_steps", False) else "runge_kutta",
        set_alpha_to_one=bool(settings.get("set_alpha_to_one", False)),
        **_spacing(settings),
    )


def _ddpm(settings: Settings) -> DDPM:
    return DDPM(variance=settings.get("variance_type", "fixed_small"), **_spacing(settings))


def _dpm_solver(settings: Settings) -> DPMSolverMultistep:
    _require(settings, {"solver_type": "midpoint", "variance_type": None})
    shared = _multistep(settings)
    shared["lower_order_final"] |= bool(settings.get("euler_at_final", False))
    return DPMSolverMultistep(**shared)


_MAKERS: dict[str, Callable[[Settings], Scheduler]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "EulerAncestralDiscreteScheduler": lambda settings: EulerAncestral(**_spacing(settings, "linspace")),
    "EulerDiscreteScheduler": lambda settings: Euler(**_sigma_method(settings), **_final_sigma(settings)),
    "HeunDiscreteScheduler": lambda settings: Heun(**_sigma_method(settings)),
    "LMSDiscreteScheduler": lambda settings: LMS(**_sigma_method(settings)),
    "PNDMScheduler": _pndm,
    "UniPCMultistepScheduler": lambda settings: UniPC(
        solver_type=settings.get("solver_type", "bh2"), **_multistep(settings)
    ),
}
