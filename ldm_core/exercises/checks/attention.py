"""Exercise 5: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ldm_core.exercises.expect import draw, expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.nn.attention_backends import math_attention
from ldm_core.testing import check_attention

Result = dict[str, Tensor]


def check(answer: UserFile) -> Iterator[str]:
    attention = answer.get("attention")

    def compare(n: int, m: int, causal: bool, size: float = 2) -> None:
        q, k, v = size * draw(2, 3, n, 8, seed=0), draw(2, 3, m, 8, seed=1), draw(2, 3, m, 8, seed=2)
        actual = answer.call(attention, q, k, v, causal=causal)
        expected = math_attention(q, k, v, causal=causal)
        expect_values("the result", actual, expected, lambda: mistakes(q, k, v, causal))

    yield "attention of 5 queries to 7 keys"
    compare(5, 7, False)
    yield "self-attention of 6 positions"
    compare(6, 6, False)
    yield "causal self-attention of 6 positions"
    compare(6, 6, True)
    yield "large scores, of some hundreds"
    compare(5, 7, False, size=200)
    yield "the contract of an attention function (ldm_core.testing.check_attention)"
    answer.meets(check_attention, attention, head_sizes=(40,), dtypes=(torch.float32, torch.bfloat16))


def mistakes(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Result:
    size = q.shape[-1]
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if causal else None
    softmax = lambda scores: scores.softmax(dim=-1)  # noqa: E731

    def result(
        scale: float = size**-0.5,
        weights: Callable[[Tensor], Tensor] = softmax,
        mask: Tensor | None = seen,
    ) -> Tensor:
        scores = q @ k.transpose(-1, -2) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return weights(scores) @ v

    found = {
        "The scale is missing: the scores are q k^T, without the factor 1 / sqrt(D).": result(1.0),
        "The scores are divided by D where sqrt(D) belongs.": result(1 / size),
        "The scores are multiplied by sqrt(D); divide by it.": result(size**0.5),
        "The scale is 1 / sqrt(N): D is the size of a head, the last axis of q.": result(q.shape[-2] ** -0.5),
        "The scale is 1 / sqrt(M): D is the size of a head, the last axis of k.": result(k.shape[-2] ** -0.5),
        "The scale is 1 / sqrt(heads): D is the size of a head, the last axis of q.": result(
            q.shape[1] ** -0.5
        ),
        "The scale is 1 / sqrt(heads * D): D is the size of one head, the last axis of q.": result(
            (q.shape[1] * size) ** -0.5
        ),
        "The softmax is missing: you return the scores times v.": result(weights=lambda x: x),
        "The softmax is over the queries (dim=-2): a query's weights sum to 1 over the keys, dim=-1.": (
            result(weights=lambda x: x.softmax(dim=-2))
        ),
        "The softmax is over the heads (dim=1): a query's weights sum to 1 over the keys, dim=-1.": (
            result(weights=lambda x: x.softmax(dim=1))
        ),
        "The softmax is over the batch (dim=0): a query's weights sum to 1 over the keys, dim=-1.": (
            result(weights=lambda x: x.softmax(dim=0))
        ),
        "The scale comes after the softmax: divide the scores by sqrt(D) before it.": (
            size**-0.5 * result(1.0)
        ),
        "exp overflows: exp(100) is more than float32 holds. Take the largest score of each query off first, "
        "which changes nothing else; `softmax` does it.": result(
            weights=lambda x: x.exp() / x.exp().sum(dim=-1, keepdim=True)
        ),
        "You divide by the sum, but do not take the exponential: the softmax is exp(scores) over its sum.": (
            result(weights=lambda x: x / x.sum(dim=-1, keepdim=True))
        ),
    }
    return found | (_of_mask(result, seen) if seen is not None else {})


def _of_mask(result: Callable[..., Tensor], seen: Tensor) -> Result:
    """The mistakes of the causal mask."""
    everything, itself = torch.ones_like(seen), torch.eye(len(seen), dtype=torch.bool)
    return {
        "causal=True is not used: every position attends to all positions.": result(mask=everything),
        "The causal mask is upside down: position i attends to i and later positions; it must attend to "
        "0..i.": result(mask=seen.T),
        "The causal mask hides a position from itself: position i attends to 0..i - 1, and the first to "
        "nothing, which is NaN. Mask the positions after i only, `triu(1)`.": result(mask=seen & ~itself),
        "The causal mask lets a position see the next one: mask the positions after i, from the first "
        "diagonal above on.": result(mask=torch.ones_like(seen).tril(1)),
        "The hidden scores are 0 where -inf belongs: exp(0) is 1, so that hidden positions get weight.": (
            result(mask=None, weights=lambda x: x.masked_fill(~seen, 0.0).softmax(dim=-1))
        ),
        "The mask comes after the softmax: the weights of what is seen no longer sum to 1. Mask the scores, "
        "before the softmax.": result(mask=None, weights=lambda x: x.softmax(dim=-1) * seen),
    }
