"""How answers that no known mistake gives are described."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_core.exercises.expect import close, draw, expect_equal, expect_pair, expect_values
from ldm_core.exercises.user_file import Wrong

X = draw(2, 3, 4, seed=0)
OTHER = X.clone()
OTHER[1, 2, 0] += 1
BROKEN = X.clone()
BROKEN[0, 1] = torch.nan


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ([1, 2], "must be a tensor of shape (2, 3, 4), not a list of 2 values"),
        (-X, "has the wrong sign"),
        (3 * X, "is 3 times the expected value"),
        (X + 0.5, "is the expected value plus 0.5"),
        (X[0], "has shape (3, 4); expected (2, 3, 4)"),
        (X.permute(0, 2, 1), "`.permute(0, 2, 1)` makes it right"),
        (X.flatten(1), "only the shape is not"),
        (BROKEN, "is nan at [0, 1, 0] and in 4 places in all"),
        (OTHER, "The largest difference is at [1, 2, 0]"),
        (X.double(), "is float64 where float32 is expected"),
        (X.bool(), "other values"),
    ],
)
def test_values(actual: Tensor, words: str) -> None:
    with pytest.raises(Wrong) as error:
        expect_values("y", actual, X)
    assert words in str(error.value)


def test_a_known_mistake_comes_first() -> None:
    with pytest.raises(Wrong, match="the second one"):
        expect_values("y", -X, X, lambda: {"the first": X + 1, "the second one": -X, "the third": -X})
    expect_values("y", X, X, lambda: pytest.fail("right answers compute no mistakes"))


def test_closeness_keeps_what_is_not_finite_in_place() -> None:
    assert close(BROKEN, BROKEN.clone())
    assert not close(BROKEN, X)
    assert not close(X, BROKEN)
    assert not close(torch.zeros(2), torch.zeros(1, 2))
    assert close(X * (1 + 3e-6), X)
    assert not close(X * (1 + 3e-5), X)


def test_other_values() -> None:
    expect_equal("n", [1], [1])
    with pytest.raises(Wrong, match=r"n is \[2\]; expected \[1\]"):
        expect_equal("n", [2], [1])
    assert expect_pair("a, b", (1, 2)) == (1, 2)
    for value in (X, "ab", [1], 3):
        with pytest.raises(Wrong, match="expected two values"):
            expect_pair("a, b", value)
