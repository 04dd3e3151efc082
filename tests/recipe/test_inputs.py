"""The fields of a recipe for inputs other than prompts: classes, layouts, maps, embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import RECIPE

from ldm_core.recipe import (
    ControlFile,
    Recipe,
    SourceFile,
    from_json,
    to_json,
    to_parameters_text,
    without_paths,
)

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
labels = st.text() | st.integers()
objects = st.fixed_dictionaries(
    {"label": labels, "x": numbers, "y": numbers, "width": numbers, "height": numbers},
    optional={"group": st.booleans(), "inside": st.booleans()},
)
present = st.builds(SourceFile, st.text(), st.just("0a"), st.none() | st.text())
files = st.none() | present
controls = st.builds(
    lambda share, **own: ControlFile(**own, start=min(share), end=max(share)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    network=present,
    hint=present,
    strength=numbers,
    guess=st.sampled_from([None, "original", "diffusers"]),
    mid_only=st.booleans(),
    global_pool=st.none() | st.booleans(),
)
wholes = st.none() | st.integers(0, 1000)
recipes = st.builds(
    lambda **fields: replace(RECIPE, **fields),
    task=st.sampled_from(["sample", "upscale"]),
    class_label=st.none() | labels,
    layout=st.none() | st.lists(objects, max_size=4).map(tuple),
    class_names=st.dictionaries(st.text(), st.integers(), max_size=3),
    class_count=st.none() | st.integers(1, 1000),
    noise_level=wholes,
    embedding_row=wholes,
    map=files,
    depth=files,
    clip_embeddings=files,
    until=st.none() | st.floats(0, 1),
    image_guidance_scale=st.none() | st.floats(-9, 9),
    controls=st.lists(controls, max_size=2).map(tuple),
    ip_adapter=files,
    clip=files,
    image_prompts=st.lists(present, max_size=2).map(tuple),
    image_scale=st.none() | numbers,
)


@given(recipes)
def test_json_gives_an_equal_recipe_back(recipe: Recipe) -> None:
    assert from_json(to_json(recipe)) == recipe
    assert len(to_parameters_text(recipe).split("\n")) == 2, "the prompt, and one line of settings"


@given(recipes)
def test_no_path_is_left(recipe: Recipe) -> None:
    bare = without_paths(recipe)
    for name in ("map", "depth", "clip_embeddings", "ip_adapter", "clip"):
        before, after = getattr(recipe, name), getattr(bare, name)
        assert after == (None if before is None else replace(before, path=None))
    named = [(one.network, one.hint) for one in bare.controls]
    assert not any(file.path for files in (*named, bare.image_prompts) for file in files)
    assert [one.name for one in bare.image_prompts] == [one.name for one in recipe.image_prompts]


def test_a_recipe_without_such_inputs_is_what_it_was() -> None:
    """Earlier versions of the package read it."""
    new = {"class_label", "layout", "class_names", "class_count", "noise_level", "embedding_row", "map"}
    new |= {"depth", "clip_embeddings", "not_finite", "until", "image_guidance_scale"}
    new |= {"controls", "ip_adapter", "clip", "image_prompts", "image_scale"}
    assert not new & set(json.loads(to_json(RECIPE)))


FILE = {"name": "a", "sha256": "0a", "path": None}
CONTROL = {"network": FILE, "hint": FILE}
BOX = {"label": "cat", "x": 0.1, "y": 0.25, "width": 0.5, "height": 1}


def test_the_text_names_the_inputs() -> None:
    recipe = replace(RECIPE, task="sample", prompt="", class_label="tench, Tinca tinca", layout=(BOX,))
    named = SourceFile("a.png", "00")
    recipe = replace(recipe, map=named, depth=named, image=named, noise_level=20)
    text = to_parameters_text(replace(recipe, clip_embeddings=named, embedding_row=3))
    assert (
        'Image: a.png, Class map: a.png, Depth map: a.png, Class: "tench, Tinca tinca", '
        'Layout: "cat (0.1, 0.25, 0.5, 1)", Embeddings: a.png (3), Noise level: 20' in text
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_label": True}, "class_label must be a whole number, text or nothing, not True"),
        ({"class_label": 1.5}, "class_label must be a whole number"),
        ({"class_label": "\ud83d"}, "class_label is not valid Unicode"),
        ({"class_names": {"a": "b"}}, r"class_names\['a'\] must be a whole number"),
        ({"class_count": 0}, r"class_count must be in 1\.\.1048576, not 0"),
        ({"noise_level": -1}, r"noise_level must be in 0\.\.100000, not -1"),
        ({"embedding_row": 2**70}, r"embedding_row must be in 0\.\.1048576"),
        ({"layout": {}}, "layout must be a list of objects or nothing, not {}"),
        ({"layout": [1]}, r"layout\[0\] must be a mapping with label, x, y, width, height, not 1"),
        ({"layout": [BOX | {"z": 1}]}, r"layout\[0\] must be a mapping"),
        ({"layout": [BOX | {"x": float("nan")}]}, r"layout\[0\]: x must be a finite number, not nan"),
        ({"layout": [BOX | {"x": 10**400}]}, r"layout\[0\]: x must be a finite number"),
        ({"layout": [BOX | {"label": None}]}, r"layout\[0\]: label must be a whole number or text"),
        ({"layout": [BOX | {"group": 1}]}, r"layout\[0\]: group must be true or false, not 1"),
        ({"layout": [BOX] * 1001}, "layout must have at most 1000 objects, not 1,001"),
        ({"map": "a.png"}, "map must be a file's name and checksum, or nothing"),
        ({"depth": {"name": "a"}}, "the recipe's depth lacks sha256"),
        ({"clip_embeddings": {"name": "a", "sha256": "x"}}, "clip_embeddings.sha256 must be up to 64"),
        ({"controls": {}}, "controls must be a list, not {}"),
        ({"controls": [1]}, r"controls\[0\] must be a control, not 1"),
        ({"controls": [{"network": FILE}]}, "a control lacks hint"),
        ({"controls": [CONTROL | {"z": 1}]}, "a control has unknown entries: 'z'"),
        ({"controls": [CONTROL | {"hint": 1}]}, "a control's hint must be a file's name and checksum, not 1"),
        (
            {"controls": [CONTROL | {"hint": FILE | {"path": 1}}]},
            "control's hint.path must be text or nothing",
        ),
        ({"controls": [CONTROL | {"strength": "1"}]}, "a control's strength must be a number, not '1'"),
        ({"controls": [CONTROL | {"start": 10**400}]}, "a control's start must be a finite number"),
        ({"controls": [CONTROL | {"end": float("nan")}]}, "a control's end must be a finite number, not nan"),
        ({"controls": [CONTROL | {"start": 0.5, "end": 0.1}]}, r"start and end must be in \[0, 1\]"),
        ({"controls": [CONTROL | {"guess": True}]}, "guess must be one of original, diffusers, or nothing"),
        (
            {"controls": [CONTROL | {"mid_only": None}]},
            "a control's mid_only must be true or false, not None",
        ),
        ({"controls": [CONTROL | {"global_pool": 1}]}, "global_pool must be true, false or nothing, not 1"),
        ({"controls": [CONTROL] * 65}, "controls must have at most 64 entries, not 65"),
        ({"image_prompts": [FILE | {"sha256": "x"}]}, "image_prompts.sha256 must be up to 64"),
        ({"image_prompts": ["a"]}, r"image_prompts\[0\] must be a file's name and checksum, not 'a'"),
        ({"image_scale": "1"}, "image_scale must be a number or nothing, not '1'"),
        ({"ip_adapter": 1}, "ip_adapter must be a file's name and checksum, or nothing, not 1"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    data = json.loads(to_json(RECIPE)) | {"task": "sample"} | fields
    with pytest.raises(ValueError, match=message) as caught:
        from_json(json.dumps(data))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
