"""The registry of parts: each network that files hold, with its configuration and the names that it goes by.

One row per network. Everything else that reads, recognises, converts or writes models goes through the rows
and names none of them, so a new network is its own files and one row here. `register` adds a row from
outside:

    with register(Part("toy", "toy network", ToyConfig, Toy, (Layout("toy", ("toy.",), toy_map),))):
        network = ldm_core.load_part("toy.safetensors", "toy")
"""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ldm_core.autoencoder import names as autoencoder_names
from ldm_core.autoencoder import settings as autoencoder_settings
from ldm_core.autoencoder import shapes as autoencoder_shapes
from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.checkpoint import folder
from ldm_core.clip import names as text_names
from ldm_core.clip import settings as text_settings
from ldm_core.clip import shapes as text_shapes
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.extras import OPEN_CLIP_EXTRAS, TRANSFORMERS_EXTRAS
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading import statements, yaml_sections
from ldm_core.loading.ignored import AUTOENCODER_EXTRAS
from ldm_core.loading.part import Folder, Layout, Part, Section
from ldm_core.unet import names as unet_names
from ldm_core.unet import settings as unet_settings
from ldm_core.unet import shapes as unet_shapes
from ldm_core.unet.config import UNetConfig
from ldm_core.unet.network import UNet


def _alone(*prefixes: str) -> tuple[tuple[str, str], ...]:
    return tuple((prefix, "") for prefix in prefixes)


# Where a text encoder lies: in CompVis's files, SDXL's, diffusers' and mlx's, ComfyUI's, or alone. The
# longest prefix first, since a shorter one would also match.
_TEXT_BASES = (
    "cond_stage_model.clip_l.",
    "cond_stage_model.clip_h.",
    "cond_stage_model.",
    "conditioner.embedders.0.",
    "text_encoder.",
    "te.",
    "clip_l.",
    "clip_h.",
    "",
)
_TRANSFORMERS_INNER = ("transformer.text_model.", "text_model.", "transformer.", "")


def _position_ids(config: TextEncoderConfig) -> dict[str, Tensor]:
    return {"embeddings.position_ids": torch.arange(config.context_length)[None]}


def _causal_mask(config: TextEncoderConfig) -> dict[str, Tensor]:
    length = config.context_length
    return {"attn_mask": torch.full((length, length), float("-inf")).triu(1)}


def _written_text(config: TextEncoderConfig) -> str:
    """Original files hold open_clip's encoders, which have the exact gelu, under open_clip's own names.

    OpenAI's have the quick one, and SD1 takes them from transformers.
    """
    exact = config.activation == "gelu" or config.projection_dim is not None
    return "open_clip" if exact else "transformers"


def _text_files(model: LatentDiffusionConfig) -> dict[str, Any]:
    assert model.text_encoder is not None
    text = text_settings.stored_text_encoder(model.text_encoder)
    settings = text_settings.text_encoder_settings(text)
    return {folder.TEXT_ENCODER: settings, **text_settings.tokenizer_settings(text)}


def _unet_files(model: LatentDiffusionConfig) -> dict[str, Any]:
    size = model.image_size // model.autoencoder.downsampling
    return {folder.UNET: unet_settings.unet_settings(model.unet, size)}


def _autoencoder_files(model: LatentDiffusionConfig) -> dict[str, Any]:
    own, size, scale = model.autoencoder, model.image_size, model.latent_scale
    return {folder.AUTOENCODER: autoencoder_settings.autoencoder_settings(own, size, scale)}


_TEXT_ENCODER = Part(
    "text_encoder",
    "text encoder",
    TextEncoderConfig,
    CLIPTextEncoder,
    (
        Layout(
            "transformers",
            ("encoder.layers.",),
            text_names.transformers_map,
            text_shapes.transformers_config,
            tuple(product(_TEXT_BASES, _TRANSFORMERS_INNER)),
            "cond_stage_model.transformer.text_model.",
            TRANSFORMERS_EXTRAS,
            buffers=_position_ids,
        ),
        Layout(
            "open_clip",
            ("transformer.resblocks.",),
            text_names.open_clip_map,
            text_shapes.open_clip_config,
            tuple(product(_TEXT_BASES, ("model.", ""))),
            "cond_stage_model.model.",
            OPEN_CLIP_EXTRAS,
            # Neither conditions a U-Net; some converters dropped one of the two.
            together=("text_projection", "logit_scale"),
            buffers=_causal_mask,
        ),
    ),
    fills="text_encoder",
    written=_written_text,
    blank=text_shapes.blank,
    fewest=text_shapes.fewest_tensors,
    reduced=text_shapes.reduced,
    folder=Folder(
        "text_encoder",
        "text_encoder/model",
        "transformers",
        text_settings.text_encoder_in,
        _text_files,
        {
            "text_encoder": ("transformers", "CLIPTextModel", "CLIPTextModelWithProjection"),
            "tokenizer": ("transformers", "CLIPTokenizer", "CLIPTokenizerFast"),
        },
        prefix="text_model.",
        stored=text_settings.stored_text_encoder,
    ),
    section=Section(
        "cond_stage_config",
        yaml_sections.text_encoder,
        tuple(yaml_sections.TEXT_ENCODERS),
        yaml_sections.sized_text_encoder,
    ),
    tokenizer=lambda config, words: CLIPTokenizer(config.context_length, config.pad_token_id, words),
)
_UNET = Part(
    "unet",
    "U-Net",
    UNetConfig,
    UNet,
    (
        Layout(
            "compvis",
            ("input_blocks.",),
            unet_names.compvis_map,
            unet_shapes.compvis_config,
            _alone("model.diffusion_model.", "diffusion_model.", "unet.", ""),
            "model.diffusion_model.",
        ),
        Layout(
            "diffusers",
            ("down_blocks.",),
            unet_names.diffusers_map,
            unet_shapes.diffusers_config,
            _alone("unet.", "model.diffusion_model.", ""),
        ),
    ),
    fills="unet",
    blank=unet_shapes.blank,
    fewest=unet_shapes.fewest_tensors,
    says=statements.of_a_unet,
    brings=("prediction", "noise_schedule"),
    folder=Folder(
        "unet",
        "unet/diffusion_pytorch_model",
        "diffusers",
        lambda own, folder: unet_settings.unet_config(own),
        _unet_files,
        {"unet": ("diffusers", "UNet2DConditionModel")},
    ),
    section=Section("unet_config", yaml_sections.unet),
)
_AUTOENCODER = Part(
    "autoencoder",
    "autoencoder",
    AutoencoderConfig,
    AutoencoderKL,
    (
        Layout(
            "compvis",
            ("decoder.up.",),
            autoencoder_names.compvis_map,
            autoencoder_shapes.compvis_config,
            _alone("first_stage_model.", "vae.", ""),
            "first_stage_model.",
            AUTOENCODER_EXTRAS,
            autoencoder_names.original_name,
        ),
        Layout(
            "diffusers",
            ("decoder.up_blocks.",),
            autoencoder_names.diffusers_map,
            autoencoder_shapes.diffusers_config,
            _alone("vae.", "first_stage_model.", ""),
            extras=AUTOENCODER_EXTRAS,
            canonical=autoencoder_names.modern_name,
        ),
    ),
    fills="autoencoder",
    blank=autoencoder_shapes.blank,
    fewest=autoencoder_shapes.fewest_tensors,
    proves_all=True,
    says=statements.of_an_autoencoder,
    brings=("latent_scale",),
    folder=Folder(
        "vae",
        "vae/diffusion_pytorch_model",
        "diffusers",
        lambda own, folder: autoencoder_settings.autoencoder_config(own),
        _autoencoder_files,
        {"vae": ("diffusers", "AutoencoderKL")},
    ),
    section=Section("first_stage_config", yaml_sections.autoencoder),
)

_BUILT_IN = (_TEXT_ENCODER, _UNET, _AUTOENCODER)
_registered: tuple[Part, ...] = ()


def parts() -> tuple[Part, ...]:
    """Every part: those that were registered from outside first, then this package's own."""
    return _registered + _BUILT_IN


class Registration:
    """What `register` returns: `remove()` takes the part out again, and so does leaving a `with` block."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def remove(self) -> None:
        global _registered
        _registered = tuple(part for part in _registered if part is not self._part)

    def __enter__(self) -> Part:
        return self._part

    def __exit__(self, *error: object) -> None:
        self.remove()


def register(part: Part) -> Registration:
    """Add a part. Raises ValueError for a name that is taken, or to fill a field that no model has."""
    global _registered
    if part.name in {other.name for other in parts()} | set(model_slots()):
        raise ValueError(f"there is a part {part.name!r} already")
    if part.fills is not None and part.fills not in {f.name for f in fields(LatentDiffusionConfig)}:
        raise ValueError(f"fills must be a field of LatentDiffusionConfig, not {part.fills!r}")
    _registered = (part, *_registered)
    return Registration(part)


def model_slots() -> tuple[str, ...]:
    """The fields of a model that parts fill."""
    return tuple(dict.fromkeys(part.fills for part in (*_BUILT_IN, *_registered) if part.fills))


def part_of(config: Any) -> Part:
    """The part that has this configuration. Raises CheckpointError if there is none."""
    for part in parts():
        if type(config) is part.config:
            return part
    raise CheckpointError(f"no part that is registered has a {type(config).__name__} for its configuration")


def fitted(config: Any, proven: Any) -> Any:
    """A part's configuration if it fits what is proved, less what the file lacks and the part does not need.

    None if it does not fit; where nothing is proved (None), everything does.
    """
    if proven is None:
        return config
    part = part_of(proven)
    if type(config) is not part.config:
        return None
    return next((one for one in (config, *part.reduced(config)) if part.blank(one) == proven), None)


def part_named(name: str) -> Part:
    """The part of this name. Raises CheckpointError with the known names."""
    for part in parts():
        if part.name == name:
            return part
    raise CheckpointError(f"the part must be one of {', '.join(part.name for part in parts())}, not {name!r}")


def part_configs(config: LatentDiffusionConfig) -> dict[str, Any]:
    """The configurations of a model's parts, by slot, without those that it does not have."""
    configs = {slot: getattr(config, slot) for slot in model_slots()}
    return {slot: value for slot, value in configs.items() if value is not None}


def part_words(slot: str) -> str:
    """What fills a slot, in words."""
    return next((part.words for part in reversed(parts()) if part.slot == slot), slot)


def layout_of(part: str, name: str) -> Layout:
    """The layout of this name for this part."""
    return part_named(part).layout(name)
