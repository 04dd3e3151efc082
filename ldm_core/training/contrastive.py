"""CLIP's loss (Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3).

In a batch of N pairs, each image is classified among the N texts, and each text among the N images:

    logits = exp(t) cos(I_i, T_j)                                            (N, N)
    loss   = (cross_entropy(logits, i) + cross_entropy(logits^T, i)) / 2     i = 0..N-1

The log temperature t is learned; exp(t) is clamped to 100 (section 2.5).

With several processes, the embeddings of all are gathered, so that the pairs of other processes are
negatives, too, and the loss is that of one process with the full batch. Counterpart: open_clip's
`ClipLoss(gather_with_grad=True)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_SCALE = math.log(100)


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor, *, gather: bool = False) -> Tensor:
    """The symmetric cross-entropy over the pairs of a batch: a scalar, float32 or wider.

    images, texts: (B, D), paired by row; normalised here. log_scale: a scalar, the t above.
    gather: use the pairs of all processes of the default process group, each with the same B. The loss is
        then the same in every process, and its gradients, averaged over the processes as
        DistributedDataParallel does, are those of one process with the full batch.

    Raises ValueError for other shapes, and for `gather` without a process group.
    """
    if images.ndim != 2 or images.shape != texts.shape or len(images) == 0:
        raise ValueError(
            "expected images and texts of the same shape (B, D), got "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
    if log_scale.numel() != 1:
        raise ValueError(f"expected log_scale to be a scalar, got shape {tuple(log_scale.shape)}")
    # Autocast to bfloat16 would make the scaled logits, up to 100, wrong by whole units.
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.promote_types(images.dtype, torch.float32)
        image_vectors = F.normalize(images.to(wide), dim=-1)
        text_vectors = F.normalize(texts.to(wide), dim=-1)
        if gather:
            image_vectors, text_vectors = gather_rows(image_vectors), gather_rows(text_vectors)
        scale = log_scale.to(wide).clamp(max=MAX_LOG_SCALE).exp()
        logits = scale * image_vectors @ text_vectors.T  # (B, B)
        pairs = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


@torch.no_grad()
def clamp_log_scale_(log_scale: Tensor) -> None:
    """Clamp t to at most log(100), in place. Call after every optimizer step.

    The loss clamps t, too, but there t has no gradient above the bound and would not come back.
    """
    log_scale.clamp_(max=MAX_LOG_SCALE)


def gather_rows(x: Tensor) -> Tensor:
    """Gather the rows of all processes in the order of their ranks: (B, D) -> (B * processes, D).

    The gradient of a row is summed over all processes. Raises ValueError without a process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("expected an initialised torch.distributed process group for gather=True")
    return _GatherRows.apply(x)


class _GatherRows(torch.autograd.Function):
    """`all_gather` with gradients; PyTorch's own version is deprecated, and its successor too new."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
