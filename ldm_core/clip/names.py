"""A whole CLIP under the two sets of names that files have, as key maps made from configurations.

openai          OpenAI's own files and open_clip's: `visual.transformer.resblocks.0.attn.in_proj_weight`
transformers    `CLIPModel`: `vision_model.encoder.layers.0.self_attn.q_proj.weight`

Parameters are named `image_encoder.…` and `text_encoder.…`. The text encoder's blocks are `text_names`'s, and
the image encoder's are the same blocks under other prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ldm_core.checkpoint.key_map import SAME, TRANSPOSED, Entry, KeyMap, leaves, module, prefixed
from ldm_core.clip.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.clip.extras import CLIP_OPENAI_EXTRAS, CLIP_TRANSFORMERS_EXTRAS
from ldm_core.clip.text_names import TRANSFORMERS_BLOCK, open_clip_block, open_clip_map, transformers_map

IMAGE, TEXT = "image_encoder.", "text_encoder."


def openai_map(image: ImageEncoderConfig, text: TextEncoderConfig) -> KeyMap:
    """The names of OpenAI's and open_clip's `CLIP`; the text encoder has no prefix in them."""
    visual = {
        "class_embedding": Entry(("class_embedding",)),
        "positional_embedding": Entry(("position_embedding",)),
        "proj": Entry(("projection",)),
        "conv1.weight": Entry(("patch_embedding.weight",)),
        **module("ln_pre", "pre_norm"),
        **module("ln_post", "final_norm"),
    }
    for i in range(image.layers):
        visual |= open_clip_block(f"transformer.resblocks.{i}.", f"blocks.{i}.")
    return {**prefixed(visual, "visual.", IMAGE), **prefixed(open_clip_map(text), "", TEXT)}


def transformers_clip_map(image: ImageEncoderConfig, text: TextEncoderConfig) -> KeyMap:
    """The names of transformers' `CLIPModel`, which stores both projections as linear layers."""
    vision = {
        "embeddings.class_embedding": Entry(("class_embedding",)),
        "embeddings.patch_embedding.weight": Entry(("patch_embedding.weight",)),
        "embeddings.position_embedding.weight": Entry(("position_embedding",)),
        **module("pre_layrnorm", "pre_norm"),  # spelled so there
        **module("post_layernorm", "final_norm"),
    }
    for i in range(image.layers):
        vision |= leaves(TRANSFORMERS_BLOCK, f"encoder.layers.{i}.", f"blocks.{i}.")
    return {
        **prefixed(vision, "vision_model.", IMAGE),
        **prefixed(transformers_map(text), "text_model.", TEXT),
        "visual_projection.weight": Entry((f"{IMAGE}projection",), TRANSPOSED),
        "text_projection.weight": Entry((f"{TEXT}text_projection",), TRANSPOSED),
        "logit_scale": Entry((f"{TEXT}logit_scale",), SAME),
    }


@dataclass(frozen=True)
class CLIPLayout:
    """One set of names.

    image_mark, text_mark: how the keys of the two encoders' blocks begin. sizes: the tensors that prove the
    sizes: the image encoder's patches, positions and projection, the text encoder's tokens and positions.
    """

    name: str
    image_mark: str
    text_mark: str
    sizes: tuple[str, str, str, str, str]
    key_map: Callable[[ImageEncoderConfig, TextEncoderConfig], KeyMap]
    extras: Mapping[str, str]  # what else such files hold, and why it is not needed


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
