"""Compare an answer with the library's, and say in words which mistake gives what it got.

A check knows the typical mistakes of its exercise. It computes what each of them gives, and an answer that
equals one of these is told so. What is not recognised is described: its sign, its factor, the order of its
axes, or the place of the largest difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ldm_core.exercises.user_file import UserFile, Wrong
from ldm_core.support.printable import shown
from ldm_core.testing.contract import Contract
from ldm_core.testing.contract import draw as draw_on
from ldm_core.testing.tensor_clauses import Case, check_tensor_function

TOLERANCE = 1e-5  # the largest error over the largest value, in float32

Mistakes = Callable[[], Mapping[str, Any]]  # a sentence about each mistake: what the mistake gives


def draw(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float32 on the CPU that depend on the arguments only."""
    return draw_on(*shape, seed=seed, dtype=torch.float32, device=torch.device("cpu"))


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether shapes agree, and values within a tolerance of the largest one; NaN and infinity in place."""
    if actual.shape != expected.shape:
        return False
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return False
    error, largest = (actual - expected)[finite].abs(), expected[finite].abs()
    return error.numel() == 0 or float(error.max()) <= tolerance * max(float(largest.max()), 1e-30)


def expect_values(
    what: str,
    actual: object,
    expected: Tensor,
    mistakes: Mistakes = dict,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise Wrong unless `actual` is a tensor of the expected values, shape and dtype.

    what: the name of the value in messages, such as "x_t".
    """
    if not isinstance(actual, Tensor):
        raise Wrong(f"{what} must be a tensor of shape {tuple(expected.shape)}, not {_kind(actual)}.")
    if not close(actual, expected, tolerance):
        for words, value in mistakes().items():
            if close(actual, value, tolerance):
                raise Wrong(words)
        raise Wrong(_describe(what, actual.detach(), expected.detach()))
    if actual.dtype != expected.dtype:
        raise Wrong(
            f"{what} has the right values, but is {_dtype(actual)} where {_dtype(expected)} is expected. A "
            "float64 tensor times a float32 one is float64: convert it with `.to(x.dtype)`."
        )


def expect_equal(what: str, actual: object, expected: object, mistakes: Mistakes = dict) -> None:
    """Raise Wrong unless the values are equal; for lists, numbers and strings."""
    if actual == expected:
        return
    for words, value in mistakes().items():
        if actual == value:
            raise Wrong(words)
    raise Wrong(f"{what} is {shown(actual)}; expected {shown(expected)}.")


def expect_pair(what: str, actual: object) -> tuple[Any, Any]:
    """The two values that a function returned. Raises Wrong if these are not two."""
    if not isinstance(actual, Sequence) or isinstance(actual, str) or len(actual) != 2:
        raise Wrong(f"expected two values, `return {what}`; got {_kind(actual)}.")
    return actual[0], actual[1]


def expect_function(
    answer: UserFile, number: int, what: str, function: Callable[..., Tensor], **arguments: Any
) -> None:
    """Raise Wrong unless the clauses of `ldm_core.testing` for functions of tensors hold for a call.

    The function does not modify its arguments, gives equal results for equal arguments, draws no random
    numbers, treats the rows of a batch alike, and takes tensors of any strides.
    """

    @torch.no_grad()
    def clauses() -> None:
        title = SimpleNamespace(__qualname__=what[0].upper() + what[1:])
        contract = Contract(title, f"exercise {number}")
        check_tensor_function(contract, Case(function, what, function, arguments, TOLERANCE))
        contract.raise_if_broken()

    answer.meets(clauses)


def _describe(what: str, actual: Tensor, expected: Tensor) -> str:
    """What is wrong with values that no known mistake gives."""
    if actual.shape != expected.shape:
        words = f"{what} has shape {tuple(actual.shape)}; expected {tuple(expected.shape)}."
        if sorted(actual.shape) == sorted(expected.shape):
            for order in itertools.permutations(range(expected.ndim)):
                if close(actual.permute(order), expected):
                    return f"{words} Its axes are in another order: `.permute{order}` makes it right."
        if actual.numel() == expected.numel() and close(actual.reshape(expected.shape), expected):
            words += " Its values are right: only the shape is not."
        return words
    bad = ~actual.double().isfinite() & expected.double().isfinite()
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = actual[tuple(place)].item()
        return f"{what} is {value} at {place} and in {int(bad.sum())} places in all; expected finite numbers."
    a, b = actual.double(), expected.double()
    if close(-a, b):
        return f"{what} has the wrong sign: it is the expected value times -1."
    factor = float((a * b).sum() / b.square().sum().clamp(min=1e-30))
    if factor and close(a / factor, b):
        return f"{what} is {factor:.4g} times the expected value, everywhere."
    if a.numel() > 1 and close(a - (a - b).mean(), b):
        return f"{what} is the expected value plus {float((a - b).mean()):.4g}, everywhere."
    place = [int(k) for k in torch.unravel_index((a - b).abs().argmax(), a.shape)]
    here = tuple(place)
    return (
        f"{what} has other values than the library's. The largest difference is at {place}: got "
        f"{float(a[here]):.5g}, expected {float(b[here]):.5g}. No mistake that "
        "the check knows gives this."
    )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"
