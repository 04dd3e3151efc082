"""Recognise other kinds of files by their tensor names, so that an error can name the kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Names = list[str]


def _starts(*prefixes: str) -> Callable[[Names], bool]:
    return lambda names: any(name.startswith(prefixes) for name in names)


def _ends(*suffixes: str) -> Callable[[Names], bool]:
    return lambda names: any(name.endswith(suffixes) for name in names)


def _is_embedding(names: Names) -> bool:
    return "emb_params" in names or any(name.startswith("string_to_param") for name in names)


_LORA = re.compile(
    r".+(?:\.lora_down\.weight|\.lora_A(?:\.\w+)?\.weight|_lora\.down\.weight|\.lora\.down\.weight"
    r"|\.lora_linear_layer\.down\.weight|\.hada_w1_a|\.lokr_w1|\.lokr_w1_a|\.diff)"
)


def _is_lora(names: Names) -> bool:
    return any(_LORA.fullmatch(name) for name in names)


def _is_lora_under(*prefixes: str) -> Callable[[Names], bool]:
    return lambda names: _starts(*prefixes)(names) and _is_lora(names)


# The order matters: a specific kind comes before a kind whose names it also contains.
_FAMILIES: tuple[tuple[str, Callable[[Names], bool]], ...] = (
    (
        "an adapter for Stable Diffusion XL, which is not supported",
        _is_lora_under("lora_te2_", "text_encoder_2."),
    ),
    (
        "an adapter for Stable Diffusion 3 or Flux, which is not supported",
        _is_lora_under(
            "lora_unet_double_blocks_", "lora_unet_joint_blocks_", "transformer.transformer_blocks."
        ),
    ),
    (
        "a DoRA (an adapter that also scales the model's own weights), which is not supported",
        lambda names: any(name.endswith(".dora_scale") or ".lora_magnitude_vector" in name for name in names),
    ),
    (
        "an adapter of a kind that is not supported (IA3, OFT)",
        _ends(".on_input", ".oft_blocks", ".oft_diag"),
    ),
    (
        "a Stable Diffusion XL model, which is not supported (its keys conditioner.embedders.1 belong to a "
        "second text encoder)",
        _starts("conditioner.embedders.1.", "text_encoder_2.", "add_embedding.", "unet.add_embedding."),
    ),
    (
        "a Stable Diffusion 3 or Flux model (a transformer, not a U-Net), which is not supported",
        _starts(
            "model.diffusion_model.joint_blocks.", "joint_blocks.", "model.diffusion_model.double_blocks.",
            "double_blocks.", "transformer_blocks.0.norm1_context.",
        ),
    ),
    (
        "a ControlNet, which is not supported yet",
        _starts("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks."),
    ),
    (
        "a LoRA, an adapter and not a model: load the model first, then apply_lora(model, FILE)",
        _is_lora,
    ),
    (
        "a textual inversion for Stable Diffusion XL, which is not supported",
        lambda names: sorted(names) == ["clip_g", "clip_l"],
    ),
    (
        "a textual inversion: load a model first, then apply_textual_inversion(model, FILE)",
        _is_embedding,
    ),
    (
        "a face restorer or an upscaler (ESRGAN, GFPGAN, CodeFormer), which is not supported",
        _starts("params_ema.", "stylegan_decoder.", "body.0.rdb1.", "model.1.sub.0.RDB1."),
    ),
    (
        "a Stable Cascade or Würstchen model, which is not supported",
        _starts("prior.", "effnet."),
    ),
)  # fmt: skip


def other_family(names: Iterable[str]) -> str | None:
    """The kind of a file that contains no latent diffusion model, or None if no known kind matches."""
    names = list(names)
    return next((what for what, holds in _FAMILIES if holds(names)), None)
