"""Gradient checkpointing: recomputes a block's activations in the backward pass instead of storing them.

Saves memory for about a third more time (Chen et al. 2016, arXiv:1604.06174). CompVis's counterpart is
`use_checkpoint` of the U-Net's blocks; here it is applied to networks from outside.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm_core.autoencoder.layers import AttentionBlock
from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.nn.blocks import ResBlock
from ldm_core.unet.transformer import TransformerBlock

BLOCKS = (ResBlock, AttentionBlock, TransformerBlock, ResidualAttentionBlock)


def enable_gradient_checkpointing(module: nn.Module, blocks: tuple[type[nn.Module], ...] = BLOCKS) -> int:
    """Make every block in `module` recompute its activations in the backward pass. Returns how many there
    are.

    Losses and gradients do not change. Undone by `disable_gradient_checkpointing`.
    """
    found = [block for block in module.modules() if isinstance(block, blocks)]
    for block in found:
        # The blocks draw no random numbers, so there is no random state to restore.
        block.forward = partial(
            checkpoint, type(block).forward.__get__(block), use_reentrant=False, preserve_rng_state=False
        )
    return len(found)


def disable_gradient_checkpointing(module: nn.Module) -> None:
    """Undo `enable_gradient_checkpointing`."""
    for block in module.modules():
        if "forward" in vars(block):
            del block.forward
