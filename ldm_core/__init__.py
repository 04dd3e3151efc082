"""ldm_core: latent diffusion that you can trust, read and take apart."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_core import config
    from ldm_core.attention import set_attention
    from ldm_core.attention_maps import record_attention
    from ldm_core.checkpoint import CheckpointError
    from ldm_core.clip import CLIP
    from ldm_core.conversion import convert, merge
    from ldm_core.convolution import set_convolution
    from ldm_core.deep_cache import DeepCache
    from ldm_core.guidance import ClassifierFreeGuidance
    from ldm_core.lora import apply_lora
    from ldm_core.model import LatentDiffusion, load, load_part
    from ldm_core.optimization import optimize
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

# Where each name is defined. It is imported when it is first used, since torch takes seconds, in which the
# command line must be able to answer to Ctrl-C.
_DEFINED_IN = {
    "CLIP": "clip",
    "CheckpointError": "checkpoint",
    "ClassifierFreeGuidance": "guidance",
    "DDIM": "schedulers",
    "DDPM": "schedulers",
    "DPMSolverMultistep": "schedulers",
    "DeepCache": "deep_cache",
    "Euler": "schedulers",
    "EulerAncestral": "schedulers",
    "Heun": "schedulers",
    "LMS": "schedulers",
    "LatentDiffusion": "model",
    "PNDM": "schedulers",
    "Sampler": "sampler",
    "SamplerStep": "sampler",
    "UniPC": "schedulers",
    "apply_lora": "lora",
    "apply_textual_inversion": "textual_inversion",
    "convert": "conversion",
    "load": "model",
    "load_part": "model",
    "merge": "conversion",
    "merge_tokens": "token_merging",
    "optimize": "optimization",
    "record_attention": "attention_maps",
    "set_attention": "attention",
    "set_convolution": "convolution",
}


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        return getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    module = f"{__name__}.{name}"
    try:
        return import_module(module)  # so that `import ldm_core` is enough for `ldm_core.unet.UNet`
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
