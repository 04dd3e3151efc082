"""The names of CLIP's parameters in files, as templates over the networks' own names.

The text encoder:

transformers    `CLIPTextModel`: SD1's checkpoints, diffusers folders, and most files of one part
open_clip       SD2's checkpoints; queries, keys and values are stored as one tensor

A whole CLIP, whose parameters are named `image_encoder.…` and `text_encoder.…`:

openai          OpenAI's own files and open_clip's: `visual.transformer.resblocks.0.attn.in_proj_weight`
transformers    `CLIPModel`: `vision_model.encoder.layers.0.self_attn.q_proj.weight`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ldm_core.checkpoint.key_map import FUSED_QKV, TRANSPOSED, KeyMap, Template, expand, same, within
from ldm_core.clip.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.clip.extras import CLIP_OPENAI_EXTRAS, CLIP_TRANSFORMERS_EXTRAS
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.nn.placement import parameter_names

TRANSFORMERS_BLOCK: Template = {
    "norm1": "layer_norm1",
    "attn.to_q": "self_attn.q_proj",
    "attn.to_k": "self_attn.k_proj",
    "attn.to_v": "self_attn.v_proj",
    "attn.to_out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
TRANSFORMERS_TEXT: Template = {
    "token_embedding": "embeddings.token_embedding",
    "position_embedding": "embeddings.position_embedding",
    **within("blocks.{i}.", "encoder.layers.{i}.", TRANSFORMERS_BLOCK),
    "final_norm": "final_layer_norm",
    "text_projection": None,
    "logit_scale": None,
}
TRANSFORMERS_IMAGE: Template = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "patch_embedding": "vision_model.embeddings.patch_embedding",
    "position_embedding": "vision_model.embeddings.position_embedding.weight",
    "pre_norm": "vision_model.pre_layrnorm",  # the original spelling
    **within("blocks.{i}.", "vision_model.encoder.layers.{i}.", TRANSFORMERS_BLOCK),
    "final_norm": "vision_model.post_layernorm",
    "projection": ("visual_projection.weight", TRANSPOSED),
}
TRANSFORMERS_CLIP: Template = {
    **within("image_encoder.", "", TRANSFORMERS_IMAGE),
    **within("text_encoder.", "text_model.", TRANSFORMERS_TEXT),
    "text_encoder.text_projection": ("text_projection.weight", TRANSPOSED),
    "text_encoder.logit_scale": "logit_scale",
}

OPEN_CLIP_BLOCK: Template = {
    "norm1": "ln_1",
    **{f"attn.to_{x}.weight": ("attn.in_proj_weight", FUSED_QKV) for x in "qkv"},
    **{f"attn.to_{x}.bias": ("attn.in_proj_bias", FUSED_QKV) for x in "qkv"},
    "attn.to_out": "attn.out_proj",
    "norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
OPEN_CLIP_TEXT: Template = {
    "token_embedding": "token_embedding",
    "position_embedding.weight": "positional_embedding",
    **within("blocks.{i}.", "transformer.resblocks.{i}.", OPEN_CLIP_BLOCK),
    "final_norm": "ln_final",
    **same("text_projection", "logit_scale"),
}
OPENAI_IMAGE: Template = {
    "class_embedding": "visual.class_embedding",
    "patch_embedding": "visual.conv1",
    "position_embedding": "visual.positional_embedding",
    "pre_norm": "visual.ln_pre",
    **within("blocks.{i}.", "visual.transformer.resblocks.{i}.", OPEN_CLIP_BLOCK),
    "final_norm": "visual.ln_post",
    "projection": "visual.proj",
}
OPENAI_CLIP: Template = {
    **within("image_encoder.", "", OPENAI_IMAGE),
    **within("text_encoder.", "", OPEN_CLIP_TEXT),
}


def transformers_map(config: TextEncoderConfig) -> KeyMap:
    """The names of transformers' `CLIPTextModel`, without its prefix `text_model.`; it has no projection."""
    return expand(TRANSFORMERS_TEXT, parameter_names(CLIPTextEncoder, config))


def open_clip_map(config: TextEncoderConfig) -> KeyMap:
    """The names of open_clip's text encoder, with the projection if the configuration has one."""
    return expand(OPEN_CLIP_TEXT, parameter_names(CLIPTextEncoder, config))


def openai_map(image: ImageEncoderConfig, text: TextEncoderConfig) -> KeyMap:
    """The names of OpenAI's and open_clip's `CLIP`, where the text encoder has no prefix."""
    return expand(OPENAI_CLIP, _clip_names(image, text))


def transformers_clip_map(image: ImageEncoderConfig, text: TextEncoderConfig) -> KeyMap:
    """The names of transformers' `CLIPModel`, which stores both projections as linear layers."""
    return expand(TRANSFORMERS_CLIP, _clip_names(image, text))


def _clip_names(image: ImageEncoderConfig, text: TextEncoderConfig) -> list[str]:
    encoders = {"image_encoder": (CLIPImageEncoder, image), "text_encoder": (CLIPTextEncoder, text)}
    return [f"{part}.{name}" for part, encoder in encoders.items() for name in parameter_names(*encoder)]


@dataclass(frozen=True)
class CLIPLayout:
    """One set of names.

    image_mark, text_mark: the prefixes of the blocks of both encoders.
    sizes: the tensors that prove the sizes: the image encoder's patches, positions and projection, the text
        encoder's tokens and positions.
    """

    name: str
    image_mark: str
    text_mark: str
    sizes: tuple[str, str, str, str, str]
    key_map: Callable[[ImageEncoderConfig, TextEncoderConfig], KeyMap]
    extras: Mapping[str, str]  # other tensors in such files, and why they are not needed


LAYOUTS = (
    CLIPLayout(
        "openai",
        "visual.transformer.resblocks.",
        "transformer.resblocks.",
        (
            "visual.conv1.weight",
            "visual.positional_embedding",
            "visual.proj",
            "token_embedding.weight",
            "positional_embedding",
        ),
        openai_map,
        CLIP_OPENAI_EXTRAS,
    ),
    CLIPLayout(
        "transformers",
        "vision_model.encoder.layers.",
        "text_model.encoder.layers.",
        (
            "vision_model.embeddings.patch_embedding.weight",
            "vision_model.embeddings.position_embedding.weight",
            "visual_projection.weight",
            "text_model.embeddings.token_embedding.weight",
            "text_model.embeddings.position_embedding.weight",
        ),
        transformers_clip_map,
        CLIP_TRANSFORMERS_EXTRAS,
    ),
)
