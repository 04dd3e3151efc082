"""Layouts: their tokens by hand, against exact arithmetic and back; what is refused; sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import TINY
from support.examples import examples
from support.reference import random_model, relative_error
from torch import Tensor

import ldm_core
from ldm_core.bert import BERTConfig, BERTEncoder
from ldm_core.conditioners import Box, Layout

NONE, LAST = 8191, 8099


def embed(tokens: Tensor) -> Tensor:
    return tokens[..., None].float()


LAYOUT = Layout(embed)


def objects(tokens: Tensor) -> list[list[int]]:
    """The triples of the first row that are objects."""
    triples = tokens[0, :90].reshape(30, 3).tolist()
    return [triple for triple in triples if triple != [NONE] * 3]


# ---- tokens ---------------------------------------------------------------------------------------


def test_an_empty_layout() -> None:
    tokens = LAYOUT.tokens([[]])
    assert tokens.dtype == torch.long
    assert tokens.tolist() == [[NONE] * 90 + [0, LAST]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((3, 0, 0, 1, 1), [3, 0, LAST]),
        ((8190, 0.5, 0.25, 0.25, 0.5), [8190, 22 * 90 + 44, 67 * 90 + 67]),  # 44.5 -> 44, 22.25, 66.75
        ((0, -0.25, 0.125, 0.5, 0.25), [0, 11 * 90 + 0, 33 * 90 + 44]),  # keeps its width: 0 to 0.5
        ((0, 0.125, -0.25, 0.25, 0.5), [0, 0 * 90 + 11, 44 * 90 + 33]),
        ((0, 0.75, 0.5, 0.5, 1), [0, 44 * 90 + 67, LAST]),
    ],
)
def test_tokens_by_hand(box: tuple[int, ...], expected: list[int]) -> None:
    tokens = LAYOUT.tokens([box])
    assert tokens.tolist() == [[*expected, *[NONE] * 87, 0, LAST]]


def test_a_flip_mirrors_objects_and_crop() -> None:
    flipped = replace(LAYOUT, flip=True)
    assert objects(flipped.tokens([(1, 0, 0, 0.25, 1)])) == [[1, 67, LAST]]
    assert flipped.crop_tokens() == (0, LAST)
    assert replace(flipped, crop=(0.5, 0, 0.5, 1)).crop_tokens() == (0, 89 * 90 + 44)


def test_a_crop_drops_what_is_outside_and_keeps_boxes_relative_to_the_picture() -> None:
    boxes = [(1, 0, 0, 0.5, 1), (2, 0.25, 0, 0.5, 1), (3, 0.75, 0, 0.25, 0.5)]
    tokens = replace(LAYOUT, crop=(0.5, 0, 0.5, 1)).tokens(boxes)
    assert objects(tokens) == [[2, 22, 89 * 90 + 67], [3, 67, 44 * 90 + 89]]
    assert tokens[0, -2:].tolist() == [44, LAST]


def test_flags_follow_the_class_in_their_bits() -> None:
    layout = replace(LAYOUT, classes=100)
    box = Box(7, 0, 0, 1, 1, group=True, depiction=True, inside=True)
    assert objects(layout.tokens([box])) == [[7 + 100 * (1 + 4 + 8), 0, LAST]]
    as_mapping = {"label": 7, "x": 0, "y": 0, "width": 1, "height": 1, "occluded": True}
    assert objects(layout.tokens([as_mapping])) == [[207, 0, LAST]]
    assert layout.boxes_of(layout.tokens([box])) == [[box]]


@pytest.mark.parametrize("names", [["dog", "cat"], {"cat": 1, "dog": 0}])
def test_labels_by_name(names: Any) -> None:
    layout = replace(LAYOUT, names=names)
    assert objects(layout.tokens([("cat", 0, 0, 1, 1), (0, 0, 0, 1, 1)])) == [[1, 0, LAST], [0, 0, LAST]]


def test_numbers_of_numpy() -> None:
    box = (np.int64(4), *np.array([0.5, 0.25, 0.25, 0.5], dtype=np.float32))
    assert LAYOUT.tokens([box]).tolist() == LAYOUT.tokens([(4, 0.5, 0.25, 0.25, 0.5)]).tolist()


def exact(boxes: Sequence[Any], crop: Any, flip: bool) -> list[int]:
    """The sequence in exact arithmetic, from its description."""

    def token(x: Fraction, y: Fraction) -> int:
        return round(y * 89) * 90 + round(x * 89)

    def ends(x: Fraction, y: Fraction, w: Fraction, h: Fraction) -> list[int]:
        x, y = max(x, Fraction(0)), max(y, Fraction(0))
        w, h = min(w, 1 - x), min(h, 1 - y)
        x = 1 - (x + w) if flip else x
        return [token(x, y), token(x + w, y + h)]

    row: list[int] = []
    for label, *rectangle in boxes:
        x, y, w, h = rectangle
        across = min(x + w, crop[0] + crop[2]) - max(x, crop[0])
        down = min(y + h, crop[1] + crop[3]) - max(y, crop[1])
        if across > 0 and down > 0:
            row += [label, *ends(x, y, w, h)]
    return row + [NONE] * (90 - len(row)) + ends(*crop)


SIDE = st.integers(1, 64).map(lambda n: Fraction(n, 64))  # sums of these are exact in floats, too


@st.composite
def rectangles(draw: st.DrawFn, beyond: bool = True) -> tuple[Fraction, ...]:
    width, height = draw(SIDE), draw(SIDE)
    corner = [
        draw(st.integers(int(-64 * size) + 1 if beyond else 0, 63).map(lambda n: Fraction(n, 64)))
        for size in (width, height)
    ]
    return (*corner, width, height)


BOXES = st.lists(st.tuples(st.integers(0, 8190), rectangles()).map(lambda t: (t[0], *t[1])), max_size=30)


@examples(200)
@given(BOXES, rectangles(beyond=False), st.booleans())
def test_tokens_equal_exact_arithmetic(boxes: Any, crop: Any, flip: bool) -> None:
    layout = replace(LAYOUT, crop=tuple(map(float, crop)), flip=flip)
    floats = [(label, *map(float, rest)) for label, *rest in boxes]
    assert layout.tokens([floats]).tolist() == [exact(boxes, crop, flip)]


@examples(200)
@given(BOXES)
def test_boxes_come_back(boxes: Any) -> None:
    floats = [(label, *map(float, rest)) for label, *rest in boxes]
    tokens = LAYOUT.tokens([floats])
    (back,) = LAYOUT.boxes_of(tokens)
    assert torch.equal(LAYOUT.tokens([back]), tokens)
    for (label, x, y, width, height), box in zip(floats, back, strict=True):
        assert box.label == label
        left, top = max(x, 0), max(y, 0)
        found = (box.x, box.y, box.x + box.width, box.y + box.height)
        wanted = (left, top, min(left + width, 1), min(top + height, 1))
        assert max(abs(a - b) for a, b in zip(found, wanted)) <= 1 / 178 + 1 / (8 * 89) + 1e-9


# ---- what is refused ------------------------------------------------------------------------------

NAMED = replace(LAYOUT, names=["cat", "dog"])


@pytest.mark.parametrize(
    ("layout", "box", "message"),
    [
        (LAYOUT, (8191, 0, 0, 1, 1), r"expected a class number in 0\.\.8190, got 8191"),
        (replace(LAYOUT, classes=10), (10, 0, 0, 1, 1), r"expected a class number in 0\.\.9, got 10"),
        (NAMED, (2, 0, 0, 1, 1), r"expected a class number in 0\.\.1, got 2"),
        (LAYOUT, (-1, 0, 0, 1, 1), "expected a class number"),
        (LAYOUT, (True, 0, 0, 1, 1), "expected a class number in .* got True"),
        (NAMED, ("cow", 0, 0, 1, 1), "unknown label 'cow'; expected one of 'cat', 'dog'"),
        (LAYOUT, ("cat", 0, 0, 1, 1), "the label 'cat' requires names"),
        (LAYOUT, (0, math.nan, 0, 1, 1), "four finite numbers, got .nan"),
        (LAYOUT, (0, 0, 0, math.inf, 1), "four finite numbers"),
        (LAYOUT, (0, 0, 0, "1", 1), "four finite numbers"),
        (LAYOUT, (0, 0, 0, 10**400, 1), "four finite numbers"),
        (LAYOUT, (0, 0, 0, 0, 1), "width and height above 0 and at most 1, .* got 0 and 1"),
        (LAYOUT, (0, 0, 0, 1, -0.5), "width and height above 0"),
        (LAYOUT, (0, 10, 20, 300, 200), "relative to the picture, got 300 and 200"),
        (LAYOUT, (0, 1, 0, 0.5, 0.5), r"from \(1, 0\) to \(1.5, 0.5\) is outside the picture"),
        (LAYOUT, (0, 0, -0.5, 0.5, 0.5), "is outside the picture"),
        (LAYOUT, (0, 0, 0, 1), r"expected an object as \(label, x, y, width, height\)"),
        (LAYOUT, {"label": 0, "x": 0}, "expected an object with the keys label, x, y,"),
        (LAYOUT, Box(0, 0, 0, 1, 1, group=True), "require the number of classes"),
        (replace(LAYOUT, classes=9), Box(0, 0, 0, 1, 1, group=1), "to be true or false"),  # type: ignore[arg-type]
        (
            replace(LAYOUT, classes=8000),
            Box(500, 0, 0, 1, 1, group=True),
            r"is token 8500, but only 0\.\.8190",
        ),
    ],
)
def test_objects_that_are_refused(layout: Layout, box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"layouts, layout 1, object 2: .*{message}"):
        layout.tokens([[], [(0, 0, 0, 1, 1), (1, 0, 0, 1, 1), box]])
    with pytest.raises(ValueError, match=f"negative, layout 0, object 0: .*{message}"):
        layout.count([[box]], "negative")


def test_at_most_thirty_objects() -> None:
    boxes = [(k, 0, 0, 0.5, 0.5) for k in range(31)]
    assert len(objects(LAYOUT.tokens(boxes[:30]))) == 30
    with pytest.raises(
        ValueError, match="layout 0: too many boxes for the sequence: expected at most 30, got 31"
    ):
        LAYOUT.tokens(boxes)
    assert objects(replace(LAYOUT, crop=(0.5, 0, 0.5, 1)).tokens(boxes)) == []


@pytest.mark.parametrize("inputs", [None, [], "cat", 3, [3], [None], ["cat"], [[], "cat"], {}, [[], 3]])
def test_inputs_that_are_no_layouts(inputs: Any) -> None:
    with pytest.raises(ValueError, match="expected inputs as a list of objects"):
        LAYOUT.count(inputs)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@examples(200)
@given(ANYTHING)
def test_any_inputs_are_tokens_or_a_value_error(inputs: Any) -> None:
    try:
        tokens = NAMED.tokens(inputs)
    except ValueError:
        return
    assert tokens.shape == (NAMED.count(inputs), 92)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) <= NONE


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 8100, "vocab_size must be an int of at least 5 that is no square, not 8100"),
        ("vocab_size", 4, "vocab_size must be"),
        ("vocab_size", "8192", "vocab_size must be"),
        ("context_length", 91, "context_length must be 3 for each object and 2 for the crop"),
        ("context_length", 2, "context_length must be"),
        ("classes", 0, r"classes must be an int in 1\.\.8191, not 0"),
        ("classes", 8192, "classes must be"),
        ("names", "cat", "expected a list of different names"),
        ("names", ["cat", "cat"], "expected a list of different names"),
        ("names", [3], "expected a list of different names"),
        ("names", {"cat": "1"}, "expected a mapping from names to class numbers"),
        ("names", {"cat": 8191}, r"'cat' must have a number in 0\.\.8190, not 8191"),
        ("crop", (0, 0, 0, 1), "crop: expected a width and height above 0"),
        ("crop", (0, 0, 1), "crop: expected x, y, width and height"),
        ("crop", 3, "crop: expected x, y, width and height"),
    ],
)
def test_fields_that_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LAYOUT, **{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 8191}, r"expected a class in 0\.\.8190 and points in 0\.\.8099, or 8191 three times, got"),
        ({1: 8100}, "expected a class"),
        ({0: -1}, "expected a class"),
        ({1: LAST, 2: 0}, "the upper left corner before the lower right"),
        ({0: 160}, r"expected a class in 0\.\.10 with 4 flags, got 160"),
    ],
)
def test_tokens_of_no_layout(change: dict[int, int], message: str) -> None:
    layout = replace(LAYOUT, classes=10)
    tokens = layout.tokens([(3, 0, 0, 1, 1)])
    for place, token in change.items():
        tokens[0, place] = token
    with pytest.raises(ValueError, match=message):
        layout.boxes_of(tokens)
    for other in (tokens[0], tokens[:, :91], tokens.float(), tokens.tolist()):
        with pytest.raises(ValueError, match=r"expected tokens as a LongTensor \(B, 92\)"):
            layout.boxes_of(other)


# ---- as a conditioner -----------------------------------------------------------------------------


def test_the_condition_is_the_encoded_sequence() -> None:
    torch.manual_seed(0)
    encoder = BERTEncoder(BERTConfig(32, 1, 8192, 92)).eval()
    layout = Layout(encoder)
    inputs = [[(3, 0, 0, 1, 1)], []]
    assert (layout.count(inputs), layout.count(inputs[0])) == (2, 1)
    with torch.no_grad():
        context = layout(inputs).context
        assert context is not None
        assert context.shape == (2, 92, 32)
        assert relative_error(context, encoder(layout.tokens(inputs))) < 1e-6
    assert layout.unconditional is None
    assert layout.modules == {"conditioner": encoder}
    assert LAYOUT.modules == {}


def test_a_sampler_takes_layouts() -> None:
    model = random_model(TINY["sd1"])
    encoder = BERTEncoder(BERTConfig(64, 1, 8192, 92)).eval().requires_grad_(False)
    model = replace(model, conditioner=Layout(encoder, names=["cat", "dog"]))
    sampler = ldm_core.Sampler(model)
    boxes = [[("cat", 0, 0, 0.5, 1)], [("dog", 0.5, 0, 0.5, 1)]]
    together = sampler.sample(boxes, steps=2, seed=[5, 5], output="latent")
    assert together.shape[0] == 2
    alone = sampler.sample(boxes[1], steps=2, seed=5, output="latent")
    assert relative_error(together[1:], alone) < 1e-4
    assert relative_error(together[:1], alone) > 1e-3, "the layout makes no difference"
