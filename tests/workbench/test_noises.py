"""The noises in a recipe: they survive JSON, and damage is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import RECIPE

from ldm_core.recipe import Noises, from_json, to_json

mixtures = st.lists(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.floats(0, 1)), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=4,
).map(tuple)


@given(st.builds(Noises, mixtures, st.booleans(), st.integers(0, 100), st.booleans()))
def test_noises_read_back(noises: Noises) -> None:
    recipe = replace(RECIPE, task="imagine", noises=noises)
    assert from_json(to_json(recipe)) == recipe


def test_recipes_without_noises_are_as_before() -> None:
    assert "noises" not in json.loads(to_json(RECIPE))


BAD: list[tuple[Any, str]] = [
    ({}, r"mixtures of 1\.\.64 pictures"),
    ({"mixtures": []}, r"mixtures of 1\.\.64 pictures"),
    ({"mixtures": [[]]}, r"1\.\.256 pairs \(seed, amount\)"),
    ({"mixtures": [[[1, 1.0]]] * 65}, r"mixtures of 1\.\.64 pictures"),
    ({"mixtures": [[[1, 1.0]] * 257]}, r"1\.\.256 pairs"),
    ({"mixtures": [[[1, 1.5]]]}, r"an amount in \[0, 1\]"),
    ({"mixtures": [[[-1, 1]]]}, r"a seed in 0\.\.2\*\*63-1"),
    ({"mixtures": [[[1.5, 1]]]}, r"a seed in 0\.\.2\*\*63-1"),
    ({"mixtures": [[[1]]]}, "a seed in"),
    ({"mixtures": [[1]]}, "a seed in|pairs"),
    ({"mixtures": "x"}, r"mixtures of 1\.\.64 pictures"),
    ({"mixtures": [[[1, 1]]], "chaos": 101}, r"chaos must be a whole number in 0\.\.100"),
    ({"mixtures": [[[1, 1]]], "tile": 1}, "tile must be true or false"),
    ({"mixtures": [[[1, 1]]], "file": "x"}, "unknown entries: 'file'"),
    ([], "noises must be the noises of pictures, or nothing"),
]


@pytest.mark.parametrize(("noises", "message"), BAD)
def test_damaged_noises_are_refused(noises: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps({**json.loads(to_json(RECIPE)), "noises": noises}))
