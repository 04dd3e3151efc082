"""`check_attention`, `check_guidance`, `check_tokenizer`: every way to break one is told in words.

Broken parts come in tables. Each part is the smallest change of one that works, so that only the clause in
question can catch it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.contracts import TEXT, broken, expect_told, told
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.nn.attention_backends import math_attention
from ldm_core.testing import check_attention, check_guidance, check_tokenizer

# --- broken attention -----------------------------------------------------------------------------------


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    *,
    scale: float | None = None,
    shift: int = 0,
    dim: int = -1,
) -> Tensor:
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + shift)
        scores = scores.masked_fill(hidden, -1e4)
    return scores.softmax(dim=dim) @ v


def no_scale(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q, k, v, causal, scale=1.0)


def mask_too_late(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q, k, v, causal, shift=1)


def mask_too_early(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q, k, v, causal, shift=-1)


def no_mask(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q, k, v, False)


def over_queries(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q, k, v, causal, dim=-2)


def unshifted_exponentials(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.exp() * (torch.ones_like(scores).tril() if causal else 1)
    return weights / weights.sum(-1, keepdim=True) @ v


def in_half(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q.half(), k.half(), v.half(), causal=causal).to(q.dtype)


def in_float32(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q.float(), k.float(), v.float(), causal=causal)


def scales_in_place(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return naive(q.mul_(q.shape[-1] ** -0.5), k, v, causal, scale=1.0)


def as_contiguous(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    q, k, v = (torch.as_strided(x, x.shape, torch.empty(x.shape).stride()) for x in (q, k, v))
    return math_attention(q, k, v, causal=causal)


def wants_views(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    q, k, v = (x.view(6, -1, x.shape[-1]) for x in (q, k, v))
    return math_attention(q, k, v, causal=causal).view(2, 3, -1, q.shape[-1])


def batch_first(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q, k, v, causal=causal).transpose(1, 2)


def with_dropout(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q, k, nn.functional.dropout(v, 1e-4), causal=causal)


def first_keys(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q, k[:1].expand_as(k), v, causal=causal)


def blocks_of_64(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Loses the keys after the last whole block of 64."""
    m = max(k.shape[2] // 64 * 64, min(k.shape[2], 64))
    return math_attention(q, k[:, :, :m], v[:, :, :m]) if not causal else math_attention(q, k, v, causal=True)


def no_gradient(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return math_attention(q, k.detach() + 0 * k, v, causal=causal)


BROKEN_ATTENTION = [
    broken(
        "batch first",
        batch_first,
        "expected attention(q, k, v) of self-attention to return (2, 3, 64, 40)",
        "(2, 64, 3, 40)",
    ),
    broken(
        "in float32", in_float32, "shape and dtype, in torch.bfloat16", "got (2, 3, 64, 40) of torch.float32"
    ),
    broken("no scale", no_scale, "to match the formula in float64", "another scale or mask"),
    broken("over queries", over_queries, "formula, in torch.float32 with heads of 40"),
    broken("in half", in_half, "formula, in torch.float32"),
    broken("unshifted exponentials", unshifted_exponentials, "of large logits to match the formula"),
    broken("blocks of 64", blocks_of_64, "of a prompt of 77 tokens to match the formula"),
    broken(
        "no mask",
        no_mask,
        "of 77 causal positions",
        "by the queries 1..8; got seen by [0, 1, 2",
    ),
    broken(
        "mask too late",
        mask_too_late,
        "causal mask",
        "seen by the queries 4..8; got seen by [3, 4, 5, 6, 7, 8]",
    ),
    broken(
        "mask too early",
        mask_too_early,
        "causal mask",
        "seen by the queries 4..8; got seen by [0, 5, 6, 7, 8]",
    ),
    broken("wants views", wants_views, "head views", "RuntimeError: view size is not compatible"),
    broken("as contiguous", as_contiguous, "head views", "transposed views to return the same", "strides"),
    broken("scales in place", scales_in_place, "purity", "not to modify q"),
    broken("with dropout", with_dropout, "random numbers", "another torch.manual_seed"),
    broken("first keys", first_keys, "batch independence", "row 1 of"),
]


@pytest.mark.parametrize(("part", "words"), BROKEN_ATTENTION)
def test_a_broken_attention_is_told(part: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_attention, part, head_sizes=(40,)), words)


def test_what_an_attention_need_not_do_can_be_said() -> None:
    check_attention(no_mask, causal=False)
    check_attention(no_gradient)
    assert "the gradient of k" in told(check_attention, no_gradient, gradients=True)
    check_attention(in_float32, dtypes=(torch.float32,))


# --- broken guidance and tokenizers ---------------------------------------------------------------------

CFG = ClassifierFreeGuidance()


def three_for_two(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    eps = network(torch.cat([x, x, x]), t, Condition.cat([uncond, cond])).chunk(3)
    return eps[0] + scale * (eps[1] - eps[0])


def one_step_later(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    return CFG(network, x, t - 1, cond, uncond, scale=scale, progress=progress)


def papers_scale(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    return CFG(network, x, t, cond, uncond, scale=1 + scale, progress=progress)


def batch_rescale(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    guided = CFG(network, x, t, cond, uncond, scale=scale, progress=progress)
    return guided if scale == 1 else guided / guided.std()


def into_cond(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    return network(x, t, Condition(cond.context.sub_(uncond.context).mul_(scale).add_(uncond.context)))


def first_row(
    network: Any, x: Tensor, t: int, cond: Condition, uncond: Condition, scale: float, progress: float
) -> Tensor:
    return CFG(network, x, t, cond, uncond, scale=scale, progress=progress)[:1]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (first_row, ("shape and dtype, at scale 0.0", "got (1, 4, 4, 4)")),
        (three_for_two, ("a condition with as many rows", "got (9, 4, 4, 4)")),
        (one_step_later, ("t=500, unchanged; got t=499",)),
        (papers_scale, ("scale 1.0 to return the conditional prediction",)),
        (batch_rescale, ("batch independence",)),
        (into_cond, ("purity", "not to modify cond")),
    ],
)
def test_a_broken_guidance_is_told(part: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_guidance, part), words)


def test_a_guidance_without_a_neutral_scale_can_be_declared() -> None:
    check_guidance(papers_scale, neutral_scale=None)


def by_words(longest: int = 12, size: int = 90) -> Any:
    """A tokenizer of one id for a word; longest: where it cuts."""

    def tokenizer(text: Any) -> Tensor:
        prompts = [text] if isinstance(text, str) else list(text)
        rows = [[sum(word.encode()) % size for word in prompt.split()][:longest] for prompt in prompts]
        width = max([len(row) for row in rows] + [1])
        return torch.tensor([row + [99] * (width - len(row)) for row in rows])

    return tokenizer


def padded(tokens: Tensor) -> Tensor:
    return nn.functional.pad(tokens, (0, 12 - tokens.shape[1]), value=99)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (by_words(), ("rows", "'a cat' alone to have the same ids as in a batch")),
        (by_words(longest=20), ("at most 12 tokens; got 20",)),
        (
            lambda text: padded(by_words()(text)).int(),
            ("as a LongTensor (5, N); got (5, 12) of torch.int32",),
        ),
        (lambda text: padded(by_words()(text)) + 1, ("ids in 0..99; got",)),
        (lambda text: padded(by_words()(text))[0], ("as a LongTensor (1, N); got (12,)",)),
        (lambda text: 0 * padded(by_words()(text)), ("5 different prompts to differ; got 1 rows",)),
        (lambda text: padded(by_words()(text)).tolist(), ("as a tensor; got a list",)),
    ],
)
def test_a_broken_tokenizer_is_told(part: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_tokenizer, part, TEXT), words)


def test_a_tokenizer_by_words_is_right_once_it_pads() -> None:
    check_tokenizer(lambda text: padded(by_words()(text)), TEXT)
