"""CLIP's loss (Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3).

In a batch of N pairs, each image must find its own text among the N, and each text its image:

    logits = exp(t) cos(I_i, T_j)                                            (N, N)
    loss   = (cross_entropy(logits, i) + cross_entropy(logits^T, i)) / 2     i = 0..N-1

The temperature is learned with the rest, as t, and kept from scaling by more than 100 (section 2.5).

With several processes each has its own pairs, and the others' are wrong answers to its own, too: the vectors
of all are gathered, and the loss is that of one process with the whole batch. Counterpart: open_clip's
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
    """The symmetric cross-entropy over the pairs of a batch: a scalar, in float32 at least.

    images, texts: (B, D), row i of each a pair; they are normalised here. log_scale: (), the t above.
    gather: whether the batch is that of all processes of torch.distributed's default group, each of which
    must bring the same B. Then every process has the same loss; its gradients, averaged over the processes,
    as DistributedDataParallel does, are those of one process with the whole batch.

    Raises ValueError for other shapes, and for `gather` without a process group.
    """
    if images.ndim != 2 or images.shape != texts.shape or len(images) == 0:
        raise ValueError(
            "expected images and texts as pairs of one shape (B, D), got "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
    if log_scale.numel() != 1:
        raise ValueError(f"expected log_scale as one number, got {tuple(log_scale.shape)}")
    # A bfloat16 product of cosines, scaled by up to 100, would be off by whole units: not under autocast.
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
    """Bring t back to at most log(100), in place; to be called after every step of the optimizer.

    The loss never scales by more, whether this is called or not. But beyond the bound t has no gradient, and
    would stay there.
    """
    log_scale.clamp_(max=MAX_LOG_SCALE)


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: (B, D) -> (B * processes, D).

    Gradients flow back to the process that a row came from, summed over those that used it. Raises ValueError
    where no process group is initialised.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("expected an initialised torch.distributed process group to gather from")
    return _GatherRows.apply(x)


class _GatherRows(torch.autograd.Function):
    """`all_gather` with a gradient; of PyTorch's own, one is deprecated and its successor is new."""

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
