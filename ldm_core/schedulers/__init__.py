"""Sampling algorithms, one per file: how to walk from noise back to an image.

`base` says what a scheduler is, `spacing` which timesteps it visits; `ddim`, `pndm` and `ddpm` are the
algorithms. They know `ldm_core.noise_schedule` and nothing else of the package.
"""

from ldm_core.schedulers.base import Scheduler, Step
from ldm_core.schedulers.ddim import DDIM, ddim_update
from ldm_core.schedulers.ddpm import DDPM
from ldm_core.schedulers.diffusers_settings import from_diffusers
from ldm_core.schedulers.pndm import PNDM
from ldm_core.schedulers.spacing import Spacing, spaced_pairs, truncate, truncate_compvis

__all__ = [
    "DDIM",
    "DDPM",
    "PNDM",
    "Scheduler",
    "Spacing",
    "Step",
    "ddim_update",
    "from_diffusers",
    "spaced_pairs",
    "truncate",
    "truncate_compvis",
]
