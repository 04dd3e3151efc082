"""Sampling algorithms, one per file: from noise back to an image.

`base` defines the interface of a scheduler, `spacing` and `sigma_spacing` the timesteps that it visits.
`ddim`, `pndm` and `ddpm` are written in terms of timesteps; `dpm_solver`, `unipc`, `euler`,
`euler_ancestral`, `heun` and `lms` in terms of noise levels (`level`). Schedulers depend on
`ldm_core.noise_schedule` only.
"""

from ldm_core.schedulers.base import Scheduler, Step
from ldm_core.schedulers.ddim import DDIM, ddim_update
from ldm_core.schedulers.ddpm import DDPM
from ldm_core.schedulers.diffusers_settings import from_diffusers
from ldm_core.schedulers.dpm_solver import DPMSolverMultistep
from ldm_core.schedulers.euler import Euler
from ldm_core.schedulers.euler_ancestral import EulerAncestral
from ldm_core.schedulers.heun import Heun
from ldm_core.schedulers.lms import LMS
from ldm_core.schedulers.pndm import PNDM
from ldm_core.schedulers.sigma_spacing import SigmaSpacing, SolverSpacing, solver_pairs
from ldm_core.schedulers.spacing import Spacing, spaced_pairs, truncate, truncate_compvis
from ldm_core.schedulers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "LMS",
    "PNDM",
    "DPMSolverMultistep",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Scheduler",
    "SigmaSpacing",
    "SolverSpacing",
    "Spacing",
    "Step",
    "UniPC",
    "ddim_update",
    "from_diffusers",
    "solver_pairs",
    "spaced_pairs",
    "truncate",
    "truncate_compvis",
]
