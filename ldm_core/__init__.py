"""ldm_core: latent diffusion that you can trust, read and take apart."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldm_core import config
from ldm_core.attention import set_attention
from ldm_core.attention_maps import record_attention
from ldm_core.checkpoint import CheckpointError
from ldm_core.convolution import set_convolution
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.model import LatentDiffusion, load, load_part
from ldm_core.sampler import Sampler, SamplerStep
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

if TYPE_CHECKING:
    from ldm_core.clip import CLIP
    from ldm_core.conversion import convert, merge
    from ldm_core.deep_cache import DeepCache
    from ldm_core.lora import apply_lora
    from ldm_core.optimization import optimize
    from ldm_core.textual_inversion import apply_textual_inversion
    from ldm_core.token_merging import merge_tokens

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "DDIM",
    "DDPM",
    "LMS",
    "PNDM",
    "CheckpointError",
    "ClassifierFreeGuidance",
    "DPMSolverMultistep",
    "DeepCache",
    "Euler",
    "EulerAncestral",
    "Heun",
    "LatentDiffusion",
    "Sampler",
    "SamplerStep",
    "UniPC",
    "apply_lora",
    "apply_textual_inversion",
    "config",
    "convert",
    "load",
    "load_part",
    "merge",
    "merge_tokens",
    "optimize",
    "record_attention",
    "set_attention",
    "set_convolution",
]

# Not every program needs these, and importing them takes as long as a third of the rest.
_WHEN_NEEDED = {
    "CLIP": "clip",
    "DeepCache": "deep_cache",
    "apply_lora": "lora",
    "apply_textual_inversion": "textual_inversion",
    "convert": "conversion",
    "merge": "conversion",
    "optimize": "optimization",
    "merge_tokens": "token_merging",
}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHEN_NEEDED[name]}"), name)
