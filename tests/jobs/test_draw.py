"""The core of a job: rows of any settings to the pictures that the sampler draws of each alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.job_runs import Painted, many, tiny
from support.small_models import small_model

import ldm_core
from ldm_core.jobs import Draw, Options, Row, row_seed
from ldm_core.recipe.fields import to_json
from ldm_core.recipe.files import SourceFile

MIXED: list[dict[str, Any]] = [
    {"id": "a", "prompt": "a cat"},
    {"id": "b", "prompt": "a dog", "steps": 3},
    {"id": "c", "prompt": "a fox", "negative_prompt": "fur", "seed": 5},
    {"id": "d", "prompt": "a hat", "width": 48, "guidance_scale": 1},
    {"id": "e", "prompt": "a car", "steps": 3},
]


def test_rows_are_drawn_as_the_sampler_draws_each_alone() -> None:
    drawn = Draw(tiny(), Options(seed=7, steps=2, batch_size=3))(MIXED)
    assert [one.id for one in drawn] == list("abcde")
    for one, row in zip(drawn, MIXED):
        seed = row.get("seed", row_seed(7, row["id"]))
        options = {"guidance_scale": 7.5, "width": 32, "height": 32, "steps": 2, **row, "seed": seed}
        prompt, negative = options.pop("prompt"), options.pop("negative_prompt", "")
        del options["id"]
        (alone,) = ldm_core.Sampler(tiny()).txt2img(prompt, negative, **options)
        assert one.image is not None
        assert one.recipe is not None
        difference = np.asarray(one.image).astype(int) - np.asarray(alone).astype(int)
        assert abs(difference).max() <= 1
        recorded = {name: getattr(one.recipe, name) for name in options}
        assert recorded == options
        assert (one.recipe.prompt, one.recipe.negative_prompt) == (prompt, negative)


def test_neither_order_nor_batches_change_what_is_drawn() -> None:
    rows = many(7)
    one = Draw(tiny(), Options(steps=2, batch_size=1))(rows)
    other = Draw(tiny(), Options(steps=2, batch_size=4))(rows[::-1])[::-1]
    for a, b in zip(one, other):
        assert a.recipe == b.recipe
        assert a.recipe is not None
        assert to_json(a.recipe) == to_json(b.recipe)  # type: ignore[arg-type]
        difference = np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)
        assert abs(difference).max() <= 1


def test_pictures_agree_before_they_are_rounded() -> None:
    """To 1e-4 of the range, whatever the batches."""
    sampler = ldm_core.Sampler(tiny())
    seeds, prompts = [3, 9, 4], ["a", "b", "c"]
    options: dict[str, Any] = {"steps": 2, "output": "tensor"}
    together = sampler.txt2img(prompts, seed=seeds, **options)
    alone = [sampler.txt2img(p, seed=[s], **options) for p, s in zip(prompts, seeds)]
    assert (together - torch.cat(alone)).abs().max() < 1e-4 / 3


def test_the_order_of_drawing_does_not_depend_on_batches() -> None:
    orders = [
        [one.index for one in Painted(tiny(), Options(batch_size=size)).stream([*many(9), {"id": "x"}])]
        for size in (1, 2, 50)
    ]
    assert orders == [[9, 0, 2, 4, 6, 8, 1, 3, 5, 7]] * 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": " "}, "the prompt is empty; this model takes prompts"),
    (
        {"prompt": "a", "width": 33},
        "width must be a positive multiple of 4 pixels, not 33; nearest: 32 or 36",
    ),
    ({"prompt": "a", "width": 32000}, "32000x32 are more than 16,384 pixels"),
    ({"prompt": "a", "steps": "x"}, "steps must be a whole number, not 'x'"),
    ({"prompt": "a", "steps": 0}, "steps must be in 1..100000, not 0"),
    ({"prompt": "a", "seed": -1}, "seed must be in 0..9223372036854775807, not -1"),
    ({"prompt": "a", "class_label": 3}, "this model takes prompts, and no class_label"),
    ({"prompt": "a", "strength": 0.5}, "strength needs an image to start from"),
    ({"prompt": "break"}, "the shapes do not match"),
]


@pytest.mark.parametrize(("row", "error"), BAD, ids=lambda value: str(value)[:30])
def test_a_failed_row_says_why_and_the_others_are_drawn(row: dict[str, Any], error: str) -> None:
    drawn = Painted(tiny(), Options(batch_size=3))([*many(3), {"id": "bad", **row}, *many(3)])
    assert [one.error for one in drawn] == [None, None, None, error, None, None, None]
    assert [one.image is None for one in drawn] == [False, False, False, True, False, False, False]


def test_nan_is_a_failed_row() -> None:
    def unet(x: Any, t: Any, context: Any) -> Any:
        return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 1, torch.nan, x)

    draw = Draw(replace(tiny(), unet=unet), Options(steps=2, batch_size=2, guidance_scale=1))
    with pytest.warns(UserWarning, match="NaN"):
        good, bad = draw([{"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"}])
    assert good.error is None
    assert bad.error == "latent with NaN or infinity since step 1 of 2"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory"), OSError("disk"), RuntimeError("CUDA error: x")],
)
def test_errors_of_the_machine_are_not_the_rows(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Painted, "_sample", fail)
    with pytest.raises(type(error)):
        Painted(tiny())(many(2))


def test_recipes_have_no_paths_and_no_number_of_a_device() -> None:
    model = SourceFile("m.ckpt", "a" * 64, "/home/me/m.ckpt")
    draw = Draw(tiny(), Options(model=model, recorded={"config": "/home/me/x.yaml"}))
    assert (draw.template.model.path, draw.template.config, draw.template.device) == (None, "x.yaml", "cpu")


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        ("unconditional", {}, "task"),
        ("class", {"class_label": 3}, "class_label"),
        ("layout", {"layout": [{"label": 1, "x": 0, "y": 0, "width": 1, "height": 1}]}, "layout"),
        ("sr", {"image": "small"}, "image"),
        ("x4", {"image": "small", "prompt": "a"}, "noise_level"),
    ],
)
def test_models_of_other_inputs(kind: str, values: dict[str, Any], field: str) -> None:
    rows = []
    for k in range(2):
        row = Row(str(k), seed=k + 3, **{name: value for name, value in values.items() if name != "image"})
        if "image" in values:
            row = replace(row, image=Image.new("RGB", (16, 8), "red"), image_file=SourceFile("s.png", ""))
        if row.layout is not None:
            row = replace(row, layout=tuple(row.layout))
        rows.append(row)
    drawn = Draw(small_model(kind), Options(steps=1, batch_size=2))(rows)
    for k, one in enumerate(drawn):
        assert (one.error, one.recipe is None) == (None, False)
        assert one.image is not None
        assert one.recipe is not None
        assert getattr(one.recipe, field) is not None
        assert one.image.size == (one.recipe.width, one.recipe.height)
        assert one.recipe.seed == k + 3
    (lacking,) = Draw(small_model(kind), Options(steps=1))([{"id": "x"}])
    assert (lacking.error is None) == (kind == "unconditional")


def test_pictures_to_start_from() -> None:
    rows = [Row(str(k), prompt="a", image=Image.new("RGB", (32, 32), (9 * k,) * 3), seed=k) for k in range(3)]
    drawn = Draw(tiny(), Options(steps=4, strength=0.5, batch_size=2))(rows)
    for row, one in zip(rows, drawn):
        (alone,) = ldm_core.Sampler(tiny()).img2img("a", row.image, 0.5, steps=4, seed=row.seed)
        assert abs(np.asarray(one.image).astype(int) - np.asarray(alone).astype(int)).max() <= 1
        assert one.recipe is not None
        assert (one.recipe.task, one.recipe.strength) == ("img2img", 0.5)
