"""Rows: the values of columns, and seeds."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm_core.jobs import Row, row_seed
from ldm_core.jobs.rows import COLUMNS, id_of, parse_row


def png(size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_a_seed_is_a_function_of_the_job_and_the_id_alone() -> None:
    """The values are part of the format: another one would change all pictures."""
    assert [row_seed(0, "1"), row_seed(1, "1"), row_seed(0, "käse")] == [4011020074, 3602223452, 1912299432]
    seeds = {row_seed(7, str(k)) for k in range(10_000)}
    assert len(seeds) > 9_990
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_numbers_may_be_text_and_missing_values_are_none() -> None:
    values = {"prompt": "a", "steps": " 20 ", "width": 64.0, "height": float("nan"), "guidance_scale": "7.5"}
    row = parse_row("x", {**values, "seed": "", "strength": None, "other": object()})
    assert row == Row("x", prompt="a", steps=20, width=64, guidance_scale=7.5)


def test_layouts_and_labels() -> None:
    box = {"label": 3, "x": 0, "y": 0, "width": 1, "height": 1}
    assert parse_row("x", {"layout": [box]}).layout == (box,)
    assert parse_row("x", {"layout": '[{"label": 3}]'}).layout == ({"label": 3},)
    assert parse_row("x", {"class_label": "17"}).class_label == 17
    assert parse_row("x", {"class_label": "dog"}).class_label == "dog"


def test_pictures_are_bytes_or_within_their_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    for value in (png(), {"bytes": png(), "path": "/x/a.png"}, "a.png"):
        row = parse_row("x", {"image": value}, tmp_path / "in")
        assert row.image is not None
        assert row.image.size == (8, 6)
        assert row.image_file is not None
        assert row.image_file.path is None
    for value in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(ValueError, match="outside of the folder"):
            parse_row("x", {"image": value}, tmp_path / "in")
    with pytest.raises(ValueError, match="needs the folder"):
        parse_row("x", {"image": "a.png"})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("steps", "many", "steps must be a whole number, not 'many'"),
        ("seed", 1.5, "seed must be a whole number, not 1.5"),
        ("width", True, "width must be a whole number, not True"),
        ("guidance_scale", "inf", "guidance_scale must be a number, not 'inf'"),
        ("prompt", 3, "prompt must be text, not 3"),
        ("prompt", "\ud800", "prompt must be text"),
        ("layout", "[1]", "layout must be a list of objects"),
        ("image", 5, "image must be the bytes of a picture or a path, not 5"),
        ("image", b"no", "image: not a picture"),
    ],
)
def test_invalid_values_name_their_column(column: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_row("x", {column: value})
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["", None, 1.0, True, "x" * 201, "\ud800", 2**70])
def test_ids_are_text_or_whole_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="an id must be"):
        id_of(value)


texts = st.text(st.sampled_from("a1-.[]{}é\n\0\ud800"), max_size=9)
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=9)
json_values = plain | st.lists(plain, max_size=3) | st.dictionaries(texts, plain, max_size=3)


@given(st.dictionaries(st.sampled_from(COLUMNS), json_values))
def test_any_values_give_a_row_or_a_value_error(values: dict[str, Any]) -> None:
    with suppress(ValueError):
        assert parse_row("x", values).id == "x"
