"""ldm_core: latent diffusion that you can trust, read and take apart."""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_core.adapters.ip_adapter import apply_ip_adapter
    from ldm_core.adapters.lora import apply_lora
    from ldm_core.adapters.textual_inversion import apply_textual_inversion
    from ldm_core.attention import set_attention
    from ldm_core.checkpoint import CheckpointError
    from ldm_core.circular_padding import seamless
    from ldm_core.clip import CLIP
    from ldm_core.compilation import capture, compile
    from ldm_core.condition import Condition
    from ldm_core.control.control import Control
    from ldm_core.guidance import ClassifierFreeGuidance
    from ldm_core.high_resolution import HighResolution
    from ldm_core.loading.control import load_control
    from ldm_core.loading.convert import convert, merge_checkpoints
    from ldm_core.loading.doctor import inspect
    from ldm_core.loading.load import build, load, load_part
    from ldm_core.loading.prior import load_prior
    from ldm_core.loading.save import save
    from ldm_core.model import LatentDiffusion
    from ldm_core.nn.convolution import set_convolution
    from ldm_core.nn.linear import set_linear
    from ldm_core.nn.optimization import optimization, optimize
    from ldm_core.sampler import Sampler
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
    from ldm_core.task_types import SamplerStep
    from ldm_core.unclip import UnCLIP
    from ldm_core.unet.deep_cache import DeepCache
    from ldm_core.unet.free_u import free_u
    from ldm_core.unet.residuals import Residuals
    from ldm_core.unet.token_merging import merge_tokens
    from ldm_core.watch.attention_maps import record_attention
    from ldm_core.windowed_model import windowed
    from ldm_core.windows import Windows

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "DDIM",
    "DDPM",
    "LMS",
    "PNDM",
    "CheckpointError",
    "ClassifierFreeGuidance",
    "Condition",
    "Control",
    "DPMSolverMultistep",
    "DeepCache",
    "Euler",
    "EulerAncestral",
    "Heun",
    "HighResolution",
    "LatentDiffusion",
    "Residuals",
    "Sampler",
    "SamplerStep",
    "UnCLIP",
    "UniPC",
    "Windows",
    "apply_ip_adapter",
    "apply_lora",
    "apply_textual_inversion",
    "build",
    "capture",
    "compile",
    "convert",
    "free_u",
    "inspect",
    "load",
    "load_control",
    "load_part",
    "load_prior",
    "merge_checkpoints",
    "merge_tokens",
    "optimization",
    "optimize",
    "record_attention",
    "save",
    "seamless",
    "set_attention",
    "set_convolution",
    "set_linear",
    "windowed",
]

# The modules that are public; `import ldm_core` is enough for them.
_MODULES = (
    "adapters",
    "attention",
    "autoencoder",
    "checkpoint",
    "clip",
    "conditioners",
    "config",
    "control",
    "exercises",
    "guidance",
    "jobs",
    "kernels",
    "noise_schedule",
    "prior",
    "prompts",
    "protocols",
    "recipe",
    "restoration",
    "schedulers",
    "serve",
    "testing",
    "text_encoder",
    "tokenizer",
    "training",
    "unet",
    "watch",
    "workbench",
)

# Where each name is defined. It is imported when it is first used, since torch takes seconds, in which the
# command line must be able to answer to Ctrl-C.
_DEFINED_IN = {
    "CLIP": "clip",
    "CheckpointError": "errors",
    "ClassifierFreeGuidance": "guidance",
    "Condition": "condition",
    "Control": "control.control",
    "DDIM": "schedulers",
    "DDPM": "schedulers",
    "DPMSolverMultistep": "schedulers",
    "DeepCache": "unet.deep_cache",
    "Euler": "schedulers",
    "EulerAncestral": "schedulers",
    "Heun": "schedulers",
    "HighResolution": "high_resolution",
    "LMS": "schedulers",
    "LatentDiffusion": "model",
    "PNDM": "schedulers",
    "Residuals": "unet.residuals",
    "Sampler": "sampler",
    "SamplerStep": "task_types",
    "UnCLIP": "unclip",
    "UniPC": "schedulers",
    "Windows": "windows",
    "apply_ip_adapter": "adapters.ip_adapter",
    "apply_lora": "adapters.lora",
    "apply_textual_inversion": "adapters.textual_inversion",
    "build": "loading.load",
    "capture": "compilation",
    "compile": "compilation",
    "convert": "loading.convert",
    "free_u": "unet.free_u",
    "load": "loading.load",
    "load_control": "loading.control",
    "load_part": "loading.load",
    "load_prior": "loading.prior",
    "inspect": "loading.doctor",
    "merge_checkpoints": "loading.convert",
    "save": "loading.save",
    "merge_tokens": "unet.token_merging",
    "optimization": "nn.optimization",
    "optimize": "nn.optimization",
    "record_attention": "watch.attention_maps",
    "seamless": "circular_padding",
    "set_attention": "attention",
    "set_convolution": "nn.convolution",
    "set_linear": "nn.linear",
    "windowed": "windowed_model",
}


def __getattr__(name: str) -> Any:
    # A garbage collection visits all objects of torch, which takes longer than these imports do.
    collects = gc.isenabled()
    gc.disable()
    try:
        if name in _DEFINED_IN:
            return getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
        return _module(f"{__name__}.{name}", name)
    finally:
        if collects:
            gc.enable()


def _module(module: str, name: str) -> Any:
    """Import a submodule, so that `import ldm_core` is enough for `ldm_core.unet.UNet`."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
