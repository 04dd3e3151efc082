"""Recipes from strangers: linear time, values within ranges, and a ValueError for all that is wrong."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.examples import examples
from support.recipes import RECIPE

from ldm_core.cli import main
from ldm_core.loading.load import bundled_model
from ldm_core.recipe import (
    Recipe,
    from_json,
    from_parameters_text,
    read_recipe,
    to_json,
    to_parameters_text,
)
from ldm_core.recipe.parameters_text import _pairs

# The parameters text

SETTINGS = "Steps: 2, Sampler: DDIM, Seed: 1, Size: 8x8"


def pairs_by_a_regular_expression(line: str) -> list[tuple[str, str]]:
    """What separates pairs, as an expression that says it shortly and takes quadratic time."""
    pairs = []
    for pair in re.findall(r'(?:"(?:\\.|[^"\\])*"|[^",])+', line):
        name, _, value = (part.strip() for part in pair.partition(":"))
        if value.startswith('"'):
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        pairs.append((name, value))
    return pairs


@examples(300)
@given(st.text(st.sampled_from('",:\\ ab')))
def test_pairs_are_separated_by_commas_outside_quotes(line: str) -> None:
    assert list(_pairs(line)) == pairs_by_a_regular_expression(line)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "text", ['"', '"\\', ",", ":", 'a: "', '\\"', '",', "a: b,", "\n", "Negative prompt:\n"], ids=repr
)
def test_a_long_text_takes_linear_time(text: str) -> None:
    start = time.process_time()
    for line in (f"{text * 100_000}, {SETTINGS}", f"x\n{SETTINGS}, {text * 100_000}"):
        try:
            from_parameters_text(line)
        except ValueError:
            continue
    assert time.process_time() - start < 10


DIGITS = "9" * 1_000_000


@pytest.mark.parametrize(
    "name", ["Steps", "Seed", "Size", "CFG scale", "Clip skip", "Denoising strength", "Eta"]
)
def test_a_number_of_many_digits(name: str) -> None:
    text = f"x\n{SETTINGS}, {name}: {DIGITS + 'x8' if name == 'Size' else DIGITS}"
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        from_parameters_text(text)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 200
    assert "integer string conversion" not in str(caught.value)


def test_a_number_of_many_digits_in_json() -> None:
    with pytest.raises(ValueError, match=r"not valid JSON \(a number of 1,000,000 digits\)"):
        from_json(to_json(RECIPE).replace('"seed": 1', f'"seed": {DIGITS}'))


# Ranges

RANGES = [
    ("width", 0, "width must be in 1..65536, not 0"),
    ("height", 2**40, "height must be in 1..65536, not 1099511627776"),
    ("steps", 0, "steps must be in 1..100000, not 0"),
    ("task", "x" * 30_000, "task must be one of txt2img, img2img, inpaint, sample, upscale, imagine, not"),
    ("steps", 10**3000, "steps must be in 1..100000, not 1000"),
    ("seed", -1, "seed must be in 0..9223372036854775807, not -1"),
    ("seed", 2**63, "seed must be in 0..9223372036854775807, not 9223372036854775808"),
    ("clip_skip", -1, "clip_skip must be in 0..1000, not -1"),
    ("guidance_scale", 10**400, "guidance_scale must be a finite number"),
    ("guidance_rescale", -(10**400), "guidance_rescale must be a finite number"),
    ("strength", 10**400, "strength must be a finite number"),
    ("scheduler_settings", {"eta": 10**400}, "scheduler_settings['eta'] must be a finite number"),
    ("scheduler_settings", {"eta": float("nan")}, "scheduler_settings['eta'] must be a finite number"),
    ("scheduler_settings", {"eta": [1]}, "scheduler_settings['eta'] must be a number, text, true, false or"),
    ("scheduler_settings", {"eta": "\ud800"}, "scheduler_settings['eta'] is not valid Unicode"),
    ("scheduler_settings", {"\ud800": 1}, "the name of a scheduler setting is not valid Unicode"),
    ("versions", {"torch": 2}, "versions['torch'] must be text, not 2"),
    ("model", {"name": "a", "sha256": "xyz"}, "model.sha256 must be up to 64 hexadecimal digits, not 'xyz'"),
    ("seeed\x1b", 1, r"unknown entries: 'seeed\x1b'"),
    ("loras", [{"file": {"name": "a", "sha256": ""}, "scale": 10**400}], "loras.scale must be a finite"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), RANGES, ids=[message for *_, message in RANGES])
def test_values_have_ranges(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_json(json.dumps(json.loads(to_json(RECIPE)) | {name: value}))
    assert len(str(caught.value)) < 200


def test_a_number_that_python_does_not_write_names_its_field() -> None:
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.100000, not a int that is too long"):
        replace(RECIPE, steps=10**5000)


@pytest.mark.parametrize("name", ["scheduler", "dtype"])
def test_a_name_that_is_unknown_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "a.png"
    outcome(path, "ldm_core", json.dumps(GOOD | {"versions": {"ldm_core": "0"}, name: "x" * 30_000}))
    given = ["--model", str(bundled_model()), "--config", "sd1"]
    assert main(["txt2img", "--from", str(path), "-o", str(tmp_path), "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert name.replace("scheduler", "sampler") in error
    assert "xxx" in error
    assert len(error) < 500


def test_a_clip_skip_of_0_in_another_programs_text_is_that_of_1() -> None:
    for clip_skip in (0, 1):
        assert from_parameters_text(f"x\n{SETTINGS}, Clip skip: {clip_skip}").clip_skip == 0


def test_the_ends_of_ranges_are_inside() -> None:
    for changes in ({"width": 65536, "height": 1}, {"steps": 100_000, "seed": 2**63 - 1, "clip_skip": 0}):
        recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
        assert from_json(to_json(recipe)) == recipe


# Anything

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
GOOD = json.loads(to_json(RECIPE))


def outcome(path: Path, keyword: str, text: str) -> Recipe | str:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, text)
    Image.new("RGB", (1, 1)).save(path, pnginfo=info)
    try:
        recipe = read_recipe(path)
    except ValueError as error:
        return str(error)
    assert to_parameters_text(recipe), "a recipe that is read can be shown"
    assert from_json(to_json(recipe)) == recipe
    return recipe


@examples(100)
@given(st.dictionaries(st.sampled_from([*GOOD, "eta"]), anything, max_size=3))
def test_any_values_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.png"
    result = outcome(path, "ldm_core", json.dumps(GOOD | changes))
    assert isinstance(result, Recipe) or result.startswith(f"{path}: ")


@examples(100)
@given(
    st.dictionaries(
        st.sampled_from(["Steps", "Sampler", "Seed", "Size", "CFG scale", "Clip skip", "Eta"]), st.text()
    ),
    st.text(),
)
def test_any_parameters_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, str], prompt: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "parameters.png"
    text = f"{prompt}\n{SETTINGS}, " + ", ".join(f"{name}: {value}" for name, value in changes.items())
    result = outcome(path, "parameters", text.encode("utf-8", "replace").decode())
    assert isinstance(result, Recipe) or result.startswith(f"{path}: ")


def test_prompts_have_a_limit(tmp_path: Path) -> None:
    """The tokenizer tries each added word at each place of a prompt."""
    long = [json.dumps(GOOD | {"prompt": "a" * count}) for count in (2**15, 2**15 + 1)]
    assert isinstance(outcome(tmp_path / "a.png", "ldm_core", long[0]), Recipe)
    assert "prompt must have at most 32,768 letters, not 32,769" in outcome(
        tmp_path / "a.png", "ldm_core", long[1]
    )


def test_a_terminal_is_shown_no_codes_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = {
        "prompt": "a\x1b[2J\nb\x9b1m猫",
        "scheduler": "x\x1b",
        "model": {"name": "\x1b.pt", "sha256": ""},
    }
    path = tmp_path / "a.png"
    assert isinstance(outcome(path, "ldm_core", json.dumps(GOOD | hostile)), Recipe)
    for options in ([], ["--json"]):
        assert main(["inspect", str(path), *options]) == 0
    outcome(path, "ldm_core", json.dumps(GOOD | {"scheduler_settings": {"x\x1b": 1}}))
    assert main(["txt2img", "--from", str(path)]) == 2
    shown = capsys.readouterr()
    assert "a\\x1b[2J\\nb\\x9b1m猫\n" in shown.out
    assert "x\\x1b" in shown.err
    assert not {"\x1b", "\x9b"} & set(shown.out + shown.err)
