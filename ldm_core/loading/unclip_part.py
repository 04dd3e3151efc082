"""The row of the registry for unCLIP's weights: an image encoder, and the statistics of its vectors.

A file may lack either or both; the model then takes vectors, and mean and std are 0 and 1. Stability AI's
files have the whole CLIP under `embedder.model.`, in the names that OpenAI and open_clip share. Folders of
diffusers have both parts in subfolders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, Template, Transform, expand, within
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.checkpoint.yaml_values import Params, class_name, section
from ldm_core.clip import CLIPImageEncoder
from ldm_core.clip.config import ImageEncoderConfig, preset
from ldm_core.clip.names import OPENAI_IMAGE, TRANSFORMERS_IMAGE
from ldm_core.clip.shapes import blank_image_encoder, image_encoder_config
from ldm_core.conditioners.text import TextConditioner
from ldm_core.conditioners.unclip import SCHEDULE, Unclip, UnclipConfig, UnclipNetwork
from ldm_core.errors import ConfigError
from ldm_core.loading.part import Folder, Layout, Part, Section
from ldm_core.nn.placement import parameter_names
from ldm_core.noise_schedule import NoiseScheduleConfig

# (1, width) in files, (width,) in the network.
ROW = Transform("row <-> vector", lambda x: (x.flatten(),), lambda xs: xs[0][None])
EMBEDDER, AUGMENTOR = "embedder.model.", "noise_augmentor.data_"
ENCODER, NORMALIZER = "image_encoder.", "image_normalizer."


def _rows(encoder: str, names: Template, statistics: str) -> Template:
    return {
        **within("image_encoder.", encoder, names),
        **{name: (f"{statistics}{name}", ROW) for name in ("mean", "std")},
    }


COMPVIS = _rows(EMBEDDER, OPENAI_IMAGE, AUGMENTOR)
DIFFUSERS = _rows(ENCODER, TRANSFORMERS_IMAGE, NORMALIZER)
# What the vector of an image does not need.
_EXTRAS = {
    **dict.fromkeys(
        (f"{EMBEDDER}{name}." for name in ("transformer", "token_embedding", "ln_final")),
        "CLIP's text encoder",
    ),
    **dict.fromkeys(
        (
            f"{EMBEDDER}{name}"
            for name in ("positional_embedding", "text_projection", "attn_mask", "logit_scale")
        ),
        "CLIP's text encoder",
    ),
    f"{ENCODER}vision_model.embeddings.position_ids": "0..N, the patches' numbers",
}


def unclip_network(config: UnclipConfig) -> UnclipNetwork:
    """The network of a configuration, with a mean of 0 and a std of 1."""
    encoder = None if config.image_encoder is None else CLIPImageEncoder(config.image_encoder)
    if not config.statistics:
        return UnclipNetwork(encoder)
    return UnclipNetwork(encoder, torch.zeros(config.width), torch.ones(config.width))


def _layouts(name: str, rows: Template, encoder: str, statistics: str) -> tuple[Layout, ...]:
    """The layouts of one kind of names, for files with both parts, and with either."""

    def key_map(config: UnclipConfig) -> KeyMap:
        return expand(rows, parameter_names(unclip_network, config))

    def prove(shapes: Shapes) -> UnclipConfig:
        vector = shapes.get(f"{statistics}mean")
        prefix = EMBEDDER if name == "compvis" else ENCODER
        found = (
            image_encoder_config(shapes, prefix) if any(key.startswith(encoder) for key in shapes) else None
        )
        width = shapes[f"{statistics}mean"][-1] if found is None else found.projection_dim
        return UnclipConfig(width, SCHEDULE, found, vector is not None)

    marks = ((encoder, statistics), (encoder,), (statistics,))
    return tuple(Layout(name, own, key_map, prove, extras=_EXTRAS) for own in marks)


def _without(config: UnclipConfig) -> UnclipConfig:
    return replace(config, image_encoder=None, statistics=False)


def _blank(config: UnclipConfig) -> UnclipConfig:
    encoder = config.image_encoder
    return replace(
        config,
        noise_schedule=SCHEDULE,
        image_encoder=None if encoder is None else blank_image_encoder(encoder),
    )


def _reduced(config: UnclipConfig) -> tuple[UnclipConfig, ...]:
    """With and without each part that a file may lack."""
    return tuple(
        replace(config, image_encoder=encoder, statistics=statistics)
        for encoder in (config.image_encoder, None)
        for statistics in (False, True)
    )


def _conditioner(config: UnclipConfig, parts: Mapping[str, Any]) -> Unclip:
    text, network = TextConditioner(parts["tokenizer"], parts["text_encoder"]), parts["conditioner"]
    if network is None or not config.statistics or network.mean.is_meta:
        return Unclip(text, None if network is None else network.image_encoder, config)
    return Unclip(text, network.image_encoder, config, network.mean, network.std)


def _in_yaml(params: Params) -> UnclipConfig:
    own = section(params, "noise_aug_config", "params")
    schedule = own.get("noise_schedule_config") or {}
    if schedule.get("beta_schedule") != "squaredcos_cap_v2":
        raise ConfigError("the noise schedule of CLIPEmbeddingNoiseAugmentation must be squaredcos_cap_v2")
    steps = NoiseScheduleConfig(timesteps=schedule.get("timesteps", 1000), beta_schedule="cosine")
    return UnclipConfig(own["timestep_dim"], steps, _embedder_in_yaml(params))


def _embedder_in_yaml(params: Params) -> ImageEncoderConfig | None:
    """The image encoder that the configuration names, without which a file may come."""
    embedder = params.get("embedder_config")
    kinds: dict[str | None, Callable[[Params], str]] = {
        "FrozenOpenCLIPImageEmbedder": lambda own: f"open_clip/{own.get('arch', 'ViT-H-14')}",
        "ClipImageEmbedder": lambda own: str(own["model"]),
    }
    kind = class_name(embedder)
    if embedder is None or kind not in kinds:
        return None
    own = section(embedder, "params") if embedder.get("params") else {}
    return preset(kinds[kind](own)).image_encoder


def _stored(config: UnclipConfig) -> UnclipConfig:
    """A folder always has mean and std."""
    return replace(config, statistics=True)


def _filled(config: UnclipConfig) -> dict[str, Tensor]:
    if config.statistics:
        return {}
    return {"mean": torch.zeros(config.width), "std": torch.ones(config.width)}


UNCLIP = Part(
    "unclip",
    "noised image vector",
    UnclipConfig,
    unclip_network,
    (
        *_layouts("compvis", COMPVIS, f"{EMBEDDER}visual.", AUGMENTOR),
        # Without its statistics, an image encoder may be any other program's.
        *_layouts("diffusers", DIFFUSERS, ENCODER, NORMALIZER)[::2],
    ),
    fills="conditioner",
    blank=_blank,
    reduced=_reduced,
    without=_without,
    conditions=_conditioner,
    call="sample({'image': image})",
    folder=Folder(
        {"image_encoder": "model", "image_normalizer": "diffusion_pytorch_model"},
        "diffusers",
        lambda own, folder: None,  # the pipeline's settings tell
        lambda model, folder: {},
        {},
        stored=_stored,
        filled=_filled,
    ),
    section=Section("cond_stage_config", _in_yaml, ("ImageEmbeddingConditionedLatentDiffusion",)),
)
