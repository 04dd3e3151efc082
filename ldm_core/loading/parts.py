"""The registry of parts: one row for each network that files contain, with its configuration and layouts.

All code that reads, recognises, converts or writes models goes through these rows, so a new network needs its
own files and one row here. `register` adds a row from other packages:

    with register(Part("toy", "toy network", ToyConfig, Toy, (Layout("toy", ("toy.",), toy_map),))):
        network = ldm_core.load_part("toy.safetensors", "toy")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ldm_core.autoencoder import compvis_settings as autoencoder_yaml
from ldm_core.autoencoder import names as autoencoder_names
from ldm_core.autoencoder import settings as autoencoder_settings
from ldm_core.autoencoder import shapes as autoencoder_shapes
from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ
from ldm_core.checkpoint.folder import CONFIG
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.clip import compvis_settings as text_yaml
from ldm_core.clip import names as text_names
from ldm_core.clip import settings as text_settings
from ldm_core.clip import shapes as text_shapes
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.extras import OPEN_CLIP_EXTRAS, TRANSFORMERS_EXTRAS
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading import statements
from ldm_core.loading.bert_parts import BERT_PARTS
from ldm_core.loading.conditioner_parts import CONDITIONER_PARTS
from ldm_core.loading.control_parts import CONTROL_PARTS, is_controlnet
from ldm_core.loading.ignored import AUTOENCODER_EXTRAS
from ldm_core.loading.part import Folder, Layout, Part, Section
from ldm_core.loading.prior_part import PRIOR
from ldm_core.loading.restoration_parts import RESTORATION_PARTS
from ldm_core.loading.unclip_part import UNCLIP
from ldm_core.unet import names as unet_names
from ldm_core.unet import settings as unet_settings
from ldm_core.unet import shapes as unet_shapes
from ldm_core.unet.compvis_settings import unet_in_yaml
from ldm_core.unet.config import UNetConfig
from ldm_core.unet.network import UNet


def _alone(*prefixes: str) -> tuple[tuple[str, str], ...]:
    return tuple((prefix, "") for prefix in prefixes)


# The prefixes of a text encoder in files of CompVis, SDXL, diffusers, mlx and ComfyUI, and of one part.
# Longer prefixes come first, since shorter ones also match their keys.
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
    """Original files store open_clip's encoders (exact gelu) in open_clip's names, OpenAI's (quick gelu) in
    transformers' names, as SD1 does.
    """
    exact = config.activation == "gelu" or config.projection_dim is not None
    return "open_clip" if exact else "transformers"


def _text_files(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    assert isinstance(model.text_encoder, TextEncoderConfig)
    text = text_settings.stored_text_encoder(model.text_encoder)
    settings = text_settings.text_encoder_settings(text)
    return {f"{folder}/{CONFIG}": settings, **text_settings.tokenizer_settings(text)}


def _unet_files(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    size = model.image_size // model.autoencoder.downsampling
    return {f"{folder}/{CONFIG}": unet_settings.unet_settings(model.unet, size)}


def _autoencoder_files(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    own, size, scale = model.autoencoder, model.image_size, model.latent_scale
    return {f"{folder}/{CONFIG}": autoencoder_settings.autoencoder_settings(own, size, scale)}


def _autoencoder_layouts(
    marks: tuple[str, ...],
    compvis: Callable[[Shapes], Any],
    diffusers: Callable[[Shapes], Any],
    *folders: str,
) -> tuple[Layout, ...]:
    """The layouts of one kind of autoencoder. marks: of both, besides the decoder's; folders: diffusers'."""
    return (
        Layout(
            "compvis",
            ("decoder.up.", *marks),
            autoencoder_names.compvis_map,
            compvis,
            _alone("first_stage_model.", "vae.", "autoencoder.", ""),
            "first_stage_model.",
            AUTOENCODER_EXTRAS,
            autoencoder_names.original_name,
        ),
        Layout(
            "diffusers",
            ("decoder.up_blocks.", *marks),
            autoencoder_names.diffusers_map,
            diffusers,
            _alone(*folders, "first_stage_model.", ""),
            extras=AUTOENCODER_EXTRAS,
            canonical=autoencoder_names.modern_name,
        ),
    )


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
            # A U-Net needs neither; some converters dropped one of the two.
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
        {"text_encoder": "model"},
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
        text_yaml.text_encoder_in_yaml,
        tuple(text_yaml.TEXT_ENCODERS),
        text_yaml.sized_text_encoder,
    ),
    tokenizer=lambda config, words: CLIPTokenizer(config.context_length, config.pad_token_id, words),
    adds_words=True,
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
            # "model." is GLIGEN's, as is "autoencoder." below.
            _alone("model.diffusion_model.", "diffusion_model.", "unet.", "model.", ""),
            "model.diffusion_model.",
            accepts=lambda found: not is_controlnet(found),
        ),
        Layout(
            "diffusers",
            ("down_blocks.",),
            unet_names.diffusers_map,
            unet_shapes.diffusers_config,
            _alone("unet.", "model.diffusion_model.", ""),
            canonical=autoencoder_names.modern_name,  # self-attention has the same names in both networks
            accepts=lambda found: not is_controlnet(found),
        ),
    ),
    fills="unet",
    blank=unet_shapes.blank,
    fewest=unet_shapes.fewest_tensors,
    says=statements.of_a_unet,
    brings=("prediction", "noise_schedule"),
    folder=Folder(
        {"unet": "diffusion_pytorch_model"},
        "diffusers",
        lambda own, folder: unet_settings.unet_config(own),
        _unet_files,
        {"unet": ("diffusers", "UNet2DConditionModel", "UNet2DModel")},
    ),
    section=Section("unet_config", unet_in_yaml),
)
_AUTOENCODER = Part(
    "autoencoder",
    "autoencoder",
    AutoencoderConfig,
    AutoencoderKL,
    _autoencoder_layouts(
        (), autoencoder_shapes.compvis_config, autoencoder_shapes.diffusers_config, "vae.", "vqvae."
    ),
    fills="autoencoder",
    blank=autoencoder_shapes.blank,
    fewest=autoencoder_shapes.fewest_tensors,
    proves_all=True,
    says=statements.of_an_autoencoder,
    brings=("latent_scale",),
    folder=Folder(
        dict.fromkeys(("vae", "vqvae"), "diffusion_pytorch_model"),
        "diffusers",
        lambda own, folder: autoencoder_settings.autoencoder_config(own),
        _autoencoder_files,
        dict.fromkeys(("vae", "vqvae"), ("diffusers", "AutoencoderKL")),
    ),
    section=Section("first_stage_config", autoencoder_yaml.autoencoder_in_yaml, autoencoder_yaml.KL),
)
_AUTOENCODER_VQ = Part(
    "autoencoder_vq",
    "VQ autoencoder",
    AutoencoderVQConfig,
    AutoencoderVQ,
    _autoencoder_layouts(
        ("quantize.embedding.",),
        autoencoder_shapes.compvis_vq_config,
        autoencoder_shapes.diffusers_vq_config,
        "vqvae.",
    ),
    fills="autoencoder",
    blank=autoencoder_shapes.blank,
    fewest=autoencoder_shapes.fewest_tensors,
    proves_all=True,
    says=statements.of_an_autoencoder,
    brings=("latent_scale",),
    folder=Folder(
        {"vqvae": "diffusion_pytorch_model"},
        "diffusers",
        lambda own, folder: autoencoder_settings.vq_config(own),
        _autoencoder_files,
        {"vqvae": ("diffusers", "VQModel")},
    ),
    section=Section("first_stage_config", autoencoder_yaml.vq_in_yaml, autoencoder_yaml.VQ),
)

# Of two autoencoders, the one with a codebook comes first: its names include those of the other.
_BUILT_IN = (
    *(_TEXT_ENCODER, _UNET, _AUTOENCODER_VQ, _AUTOENCODER),
    *(*BERT_PARTS, *CONDITIONER_PARTS, UNCLIP, PRIOR, *CONTROL_PARTS),
    *RESTORATION_PARTS,
)
_registered: tuple[Part, ...] = ()


def parts() -> tuple[Part, ...]:
    """All parts: registered ones first, then those of this package."""
    return _registered + _BUILT_IN


class Registration:
    """The result of `register`: `remove()`, or leaving a `with` block, removes the part again."""

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
    """Add a part. Raises ValueError if its name is taken, or if it fills a field that no model has."""
    global _registered
    if part.name in {other.name for other in parts()} | set(model_slots()):
        raise ValueError(f"a part {part.name!r} is already registered")
    if part.fills is not None and part.fills not in {f.name for f in fields(LatentDiffusionConfig)}:
        raise ValueError(f"fills must be a field of LatentDiffusionConfig, not {part.fills!r}")
    _registered = (part, *_registered)
    return Registration(part)


def model_slots() -> tuple[str, ...]:
    """The fields of a model that parts fill."""
    return tuple(dict.fromkeys(part.fills for part in (*_BUILT_IN, *_registered) if part.fills))


def part_of(config: Any) -> Part:
    """The part with this class of configuration. Raises CheckpointError if there is none."""
    for part in parts():
        if type(config) is part.config:
            return part
    raise CheckpointError(f"no registered part has a configuration of type {type(config).__name__}")


def fitted(config: Any, proven: Any) -> Any:
    """The configuration, or an equivalent reduced one, if it agrees with what shapes prove; otherwise None.

    Without a proof (None), every configuration agrees.
    """
    if proven is None:
        return config
    part = part_of(proven)
    if type(config) is not part.config:
        return None
    return next((one for one in (config, *part.reduced(config)) if part.blank(one) == proven), None)


def part_named(name: str) -> Part:
    """The part with this name. Raises CheckpointError that lists the known names."""
    for part in parts():
        if part.name == name:
            return part
    raise CheckpointError(f"the part must be one of {', '.join(part.name for part in parts())}, not {name!r}")


def part_configs(config: LatentDiffusionConfig) -> dict[str, Any]:
    """The configurations of the parts with weights that a model has, by slot."""
    configs = {slot: getattr(config, slot) for slot in model_slots()}
    return {slot: own for slot, own in configs.items() if own is not None and part_of(own).has_weights(own)}


def part_words(slot: str) -> str:
    """The name of a slot in messages, whichever part fills it."""
    if slot in model_slots():
        return "U-Net" if slot == "unet" else slot.replace("_", " ")
    return next((part.words for part in parts() if part.slot == slot), slot)
