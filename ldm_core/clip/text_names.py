"""CLIP's text encoder under the two sets of names that files have, as key maps made from a configuration.

transformers    `CLIPTextModel`: SD1's checkpoints, every diffusers folder, and most files of one part
open_clip       SD2's checkpoints; queries, keys and values are stored as one tensor
"""

from __future__ import annotations

from ldm_core.checkpoint.key_map import BOTH, FUSED_QKV, SAME, Entry, KeyMap, Leaf, leaves, module
from ldm_core.clip.config import TextEncoderConfig

TRANSFORMERS_BLOCK: list[Leaf] = [
    ("layer_norm1", "norm1", BOTH, SAME),
    *((f"self_attn.{x}_proj", f"attn.to_{x}", BOTH, SAME) for x in "qkv"),
    ("self_attn.out_proj", "attn.to_out", BOTH, SAME),
    ("layer_norm2", "norm2", BOTH, SAME),
    ("mlp.fc1", "fc1", BOTH, SAME),
    ("mlp.fc2", "fc2", BOTH, SAME),
]
OPEN_CLIP_BLOCK: list[Leaf] = [
    ("ln_1", "norm1", BOTH, SAME),
    ("attn.out_proj", "attn.to_out", BOTH, SAME),
    ("ln_2", "norm2", BOTH, SAME),
    ("mlp.c_fc", "fc1", BOTH, SAME),
    ("mlp.c_proj", "fc2", BOTH, SAME),
]


def transformers_map(config: TextEncoderConfig) -> KeyMap:
    """The names of transformers' `CLIPTextModel`, after its `text_model.`; it has no projection."""
    key_map = {
        "embeddings.token_embedding.weight": Entry(("token_embedding.weight",)),
        "embeddings.position_embedding.weight": Entry(("position_embedding.weight",)),
        **module("final_layer_norm", "final_norm"),
    }
    for i in range(config.layers):
        key_map |= leaves(TRANSFORMERS_BLOCK, f"encoder.layers.{i}.", f"blocks.{i}.")
    return key_map


def open_clip_map(config: TextEncoderConfig) -> KeyMap:
    """The names of open_clip's text tower; with its projection, if the configuration has one."""
    key_map = {
        "token_embedding.weight": Entry(("token_embedding.weight",)),
        "positional_embedding": Entry(("position_embedding.weight",)),
        **module("ln_final", "final_norm"),
    }
    if config.projection_dim is not None:
        key_map |= {name: Entry((name,)) for name in ("text_projection", "logit_scale")}
    for i in range(config.layers):
        key_map |= open_clip_block(f"transformer.resblocks.{i}.", f"blocks.{i}.")
    return key_map


def open_clip_block(there: str, here: str) -> KeyMap:
    """One block, which is the same in open_clip's text and image encoders."""
    key_map = leaves(OPEN_CLIP_BLOCK, there, here)
    for tensor in BOTH:
        parameters = tuple(f"{here}attn.to_{x}.{tensor}" for x in "qkv")
        key_map[f"{there}attn.in_proj_{tensor}"] = Entry(parameters, FUSED_QKV)
    return key_map
