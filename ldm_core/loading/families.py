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


_CONTROL = ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.")
_BARE_CONTROL = ("input_hint_block.", "zero_convs.")


def _is_controlnet(names: Names) -> bool:
    """Whether a file contains a ControlNet without the model that it controls."""
    alone = not _starts("model.diffusion_model.")(names)
    return alone and (_starts(*_CONTROL)(names) or all(_starts(mark)(names) for mark in _BARE_CONTROL))


def _is_t2i_adapter(names: Names) -> bool:
    marks = ("body.0.block1.weight", "body.0.body.0.block1.weight", "body.0.resnets.0.block1.weight")
    coadapter = ("style_embedding", "spatial_ch_projs.0.weight")
    bare = {name.removeprefix("adapter.") for name in names}
    return not bare.isdisjoint((*marks, *coadapter))


_FACE_ID = re.compile(r"(?:ip_adapter\.)?\d+\.to_(?:q|k|v|out)_lora\..+|image_proj\.perceiver_resampler\..+")

# Controls and adapters of pictures that no network here fits.
_UNSUPPORTED_CONTROLS: tuple[tuple[str, Callable[[Names], bool]], ...] = (
    (
        "a control-LoRA (the low-rank differences of a ControlNet), which is not supported",
        lambda names: "lora_controlnet" in names,
    ),
    (
        "a ControlNet for Stable Diffusion XL, which is not supported",
        lambda names: (
            _starts("control_model.label_emb.")(names)
            or (_starts(*_CONTROL)(names) and _starts("add_embedding.")(names))
            or (_starts("zero_convs.")(names) and _starts("label_emb.")(names))
        ),
    ),
    (
        "an IP-Adapter FaceID (an adapter of ArcFace's embeddings), which is not supported",
        lambda names: any(_FACE_ID.fullmatch(name) for name in names),
    ),
)

# The order matters: a specific kind comes before a kind whose names it also contains.
_FAMILIES: tuple[tuple[str, Callable[[Names], bool]], ...] = (
    *_UNSUPPORTED_CONTROLS,
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
        "a ControlNet: load the model first, then load_control(FILE, model=model)",
        _is_controlnet,
    ),
    (
        "a T2I-Adapter: load the model first, then load_control(FILE, model=model)",
        _is_t2i_adapter,
    ),
    (
        "an IP-Adapter: load the model first, then apply_ip_adapter(model, FILE)",
        lambda names: _starts("image_proj.")(names) and _ends(".to_k_ip.weight")(names),
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
        "an upscaler (ESRGAN), which is not supported",
        _starts(
            "params_ema.conv_first.", "params.conv_first.", "params_ema.body.0.", "params.body.0.rdb1.",
            "body.0.rdb1.", "model.1.sub.0.RDB1.",
        ),
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


def unsupported_control(names: Iterable[str]) -> str | None:
    """The kind of a file with a control or an adapter of pictures that is not supported, or None."""
    names = list(names)
    return next((what for what, holds in _UNSUPPORTED_CONTROLS if holds(names)), None)
