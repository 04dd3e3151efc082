"""What the shapes of BERT's tensors prove, in CompVis's and in diffusers' names: all of its configuration."""

from __future__ import annotations

from ldm_core.bert.config import BERTConfig
from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.support.limits import MAX_DEPTH


def compvis_config(shapes: Shapes) -> BERTConfig:
    """From CompVis's names. Raises KeyError or ValueError where no BERT has them."""
    layers = children(shapes, "attn_layers.layers.", 2 * MAX_DEPTH)
    if len(layers) % 2:
        raise ValueError(f"expected an MLP after each attention, got {len(layers)} layers")
    vocab_size, width = shapes["token_emb.weight"]
    return BERTConfig(width, len(layers) // 2, vocab_size, shapes["pos_emb.emb.weight"][0])


def diffusers_config(shapes: Shapes) -> BERTConfig:
    """From diffusers' names, with the same errors."""
    vocab_size, width = shapes["embed_tokens.weight"]
    layers = len(children(shapes, "layers."))
    return BERTConfig(width, layers, vocab_size, shapes["embed_positions.weight"][0])


def fewest_tensors(config: BERTConfig) -> int:
    """How many tensors the blocks of such a BERT have in either of the layouts."""
    return 13 * config.layers
