"""The scheduler of a diffusers folder: its `scheduler_config.json` to one of ours.

What that file says of the noise schedule and of the prediction belongs to the model, and `load` reads it
there; this is the rest. A missing setting has the default of diffusers' class, which is not always ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ldm_core.schedulers.base import Scheduler
from ldm_core.schedulers.ddim import DDIM
from ldm_core.schedulers.ddpm import DDPM
from ldm_core.schedulers.pndm import PNDM

Settings = Mapping[str, Any]

# Settings that change a step, with the only value that the schedulers here have.
_UNSUPPORTED = {"clip_sample": False, "thresholding": False}
_CLIPS_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler")


def from_diffusers(settings: Settings) -> Scheduler:
    """The scheduler that these settings describe, as in
    `from_diffusers(checkpoint.read(folder).metadata["scheduler/scheduler_config.json"])`.

    Raises ValueError for a class or a setting that is not known here, naming it.
    """
    name = settings.get("_class_name")
    if not isinstance(name, str) or name not in _MAKERS:
        raise ValueError(f"the scheduler {name!r} is not known here; expected one of {', '.join(_MAKERS)}")
    for setting, only in _UNSUPPORTED.items():
        value = settings.get(setting, setting == "clip_sample" and name in _CLIPS_BY_DEFAULT)
        if value != only:
            raise ValueError(
                f"{name}: {setting} is {value!r}; latents have no fixed range and are not clipped here"
            )
    try:
        return _MAKERS[name](settings)
    except TypeError as error:
        raise ValueError(f"{name}: a setting has the wrong type: {error}") from error


def _spacing(settings: Settings) -> dict[str, Any]:
    return {
        "spacing": settings.get("timestep_spacing", "leading"),
        "steps_offset": settings.get("steps_offset", 0),
    }


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


_MAKERS: dict[str, Callable[[Settings], Scheduler]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
}
