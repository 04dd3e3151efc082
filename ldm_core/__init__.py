"""ldm_core: latent diffusion that you can trust, read and take apart."""

from ldm_core import config
from ldm_core.attention import set_attention
from ldm_core.attention_maps import record_attention
from ldm_core.checkpoint import CheckpointError
from ldm_core.conversion import convert, merge
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.model import LatentDiffusion, load, load_part
from ldm_core.sampler import Sampler, SamplerStep
from ldm_core.schedulers import DDIM, DDPM, PNDM

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "PNDM",
    "CheckpointError",
    "ClassifierFreeGuidance",
    "LatentDiffusion",
    "Sampler",
    "SamplerStep",
    "config",
    "convert",
    "load",
    "load_part",
    "merge",
    "record_attention",
    "set_attention",
]
