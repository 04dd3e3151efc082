"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of kept.

Memory for time, about a third more of it (Chen et al. 2016, arXiv:1604.06174). CompVis's counterpart is
`use_checkpoint` of its U-Net's blocks; here the networks know nothing of it.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm_core.autoencoder.kl import AttentionBlock
from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.nn.blocks import ResBlock
from ldm_core.unet.network import TransformerBlock

BLOCKS = (ResBlock, AttentionBlock, TransformerBlock, ResidualAttentionBlock)  # what a network is made of


def enable_gradient_checkpointing(module: nn.Module, blocks: tuple[type[nn.Module], ...] = BLOCKS) -> int:
    """Make every block below `module` recompute itself in the backward pass; returns how many there are.

    Losses and gradients stay what they were. `disable_gradient_checkpointing` undoes it.
    """
    found = [block for block in module.modules() if isinstance(block, blocks)]
    for block in found:
        # The blocks draw no random numbers, so there is no random state to be put back for the second time.
        block.forward = partial(
            checkpoint, type(block).forward.__get__(block), use_reentrant=False, preserve_rng_state=False
        )
    return len(found)


def disable_gradient_checkpointing(module: nn.Module) -> None:
    """Undo `enable_gradient_checkpointing`."""
    for block in module.modules():
        if "forward" in vars(block):
            del block.forward
