"""The engine: the queue, the reports, what can be cancelled, and what a failure leaves behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from serve.conftest import FILE, PATIENCE, Make
from support.small_models import small_model

import ldm_core
from ldm_core.recipe import SourceFile, read_recipe
from ldm_core.serve import BadOrder, Engine, Order, Source, TooBusy, Upload, drawing
from ldm_core.serve.engine import OUT_OF_MEMORY, UNEXPECTED

PICTURE = Image.radial_gradient("L").resize((48, 32)).convert("RGB")
GIVEN = Upload(PICTURE, SourceFile("cat.png", "cd" * 32))


def test_an_order_becomes_the_samplers_picture_with_its_recipe(
    engine: Engine, tiny: ldm_core.LatentDiffusion, tmp_path: Path
) -> None:
    job = engine.submit(Order("red apple", "blue", seed=7, width=48, scheduler="plms"))
    reports = list(job.reports())
    assert job.report.state == "done", job.report.message
    steps = [one.step for one in reports]
    assert steps == sorted(steps)
    assert reports[-1].step == reports[-1].total == 3
    result = reports[-1].result
    expected = ldm_core.Sampler(tiny, ldm_core.PNDM()).txt2img(
        "red apple", "blue", steps=3, guidance_scale=4.0, width=48, height=32, seed=7
    )[0]
    assert result.pictures[0].tobytes() == expected.tobytes()
    assert reports[-1].preview is result.pictures[0]
    (tmp_path / "apple.png").write_bytes(result.png(0))
    recipe = read_recipe(tmp_path / "apple.png")
    assert recipe == result.recipes[0]
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.scheduler) == ("red apple", 7, 3, "PNDM")
    assert recipe.model == SourceFile(FILE.name, FILE.sha256)  # without the server's path
    assert "/secret" not in str(result.recipes)
    assert [word for word, _ in result.words] == ["red", "apple"]
    assert {heat.size for _, heat in result.words} == {(48, 32)}
    assert result.strip.width > 3 * 128


def test_pictures_of_one_order_are_those_of_their_seeds_alone(engine: Engine) -> None:
    two = engine.submit(Order("a", seed=3, num_images=2, watched=False)).wait(PATIENCE).result
    alone = engine.submit(Order("a", seed=4, watched=False)).wait(PATIENCE).result
    assert two.pictures[1].tobytes() == alone.pictures[0].tobytes()
    assert [recipe.seed for recipe in two.recipes] == [3, 4]
    assert (two.strip, two.words) == (None, ())


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_pictures_are_cropped_to_the_size_that_is_asked_for(engine: Engine, task: Any) -> None:
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, (8, 8, 30, 20))
    given = {"mask": Upload(mask, SourceFile("mask.png", ""))} if task == "inpaint" else {}
    order = Order("a cat", task=task, image=GIVEN, width=32, height=32, seed=1, **given)
    result = engine.submit(order).wait(PATIENCE).result
    assert result.pictures[0].size == (32, 32)
    assert result.recipes[0].image == GIVEN.file
    if task == "inpaint":  # the corner is outside of the mask
        fitted = drawing.fitted(PICTURE, (32, 32))
        assert result.pictures[0].getpixel((31, 31)) == fitted.getpixel((31, 31))


def test_large_pictures_have_linear_previews(
    make: Make, tiny: ldm_core.LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "DECODED_PIXELS", 1000)
    monkeypatch.setattr(drawing, "FITTED_PICTURES", 2)
    engine = make(tiny)
    first = engine.submit(Order("a", steps=1))
    assert [one.preview.size for one in first.reports() if one.preview] != []
    assert first.report.state == "done"
    preview = engine._loaded._preview
    assert preview is not None
    engine.submit(Order("b", steps=1)).wait(PATIENCE)
    assert engine._loaded._preview is preview  # fitted once


def test_jobs_are_drawn_in_their_order_and_can_be_cancelled(make: Make, gated: Any) -> None:
    engine = make(gated, waiting=2)
    first = engine.submit(Order("a", steps=3))
    while not gated.unet.calls:  # until the first step of the first has begun
        next(first.reports(0.01))
    second, third = engine.submit(Order("b")), engine.submit(Order("c", steps=1))
    assert [job.report.position for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(TooBusy, match="2 others are waiting"):
        engine.submit(Order("d"))
    second.cancel()
    assert second.report.state == "cancelled"
    assert third.report.position == 1
    first.cancel()
    gated.unet.open()
    assert first.wait(PATIENCE).state == "cancelled"
    assert first.report.step == 0  # it ended after the step that had begun
    assert third.wait(PATIENCE).state == "done"
    assert gated.unet.calls == 2
    first.cancel()  # of a finished job: nothing happens
    third.cancel()
    assert third.report.state == "done"


def test_closing_cancels_everything(make: Make, gated: Any) -> None:
    engine = make(gated)
    jobs = [engine.submit(Order(prompt)) for prompt in "ab"]
    gated.unet.open()
    engine.close()
    assert {job.wait(PATIENCE).state for job in jobs} <= {"cancelled", "done"}
    assert jobs[1].report.state == "cancelled"
    with pytest.raises(TooBusy, match="shutting down"):
        engine.submit(Order("c"))


@pytest.mark.parametrize(
    ("error", "message", "refused"),
    [
        (RuntimeError("/secret/place is broken"), UNEXPECTED, False),
        (torch.OutOfMemoryError("CUDA"), OUT_OF_MEMORY, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY, True),
        (ValueError("the latent is wrong"), "the latent is wrong", True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_told_in_words_and_the_next_job_is_drawn(
    make: Make, gated: Any, error: Exception, message: str, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make(gated)
    gated.unet.open()
    gated.unet.error = error
    with caplog.at_level(logging.WARNING):
        report = engine.submit(Order("a", steps=1)).wait(PATIENCE)
    assert (report.state, report.message, report.refused) == ("failed", message, refused)
    assert ("secret" in caplog.text) == (message == UNEXPECTED)  # the log has what users do not see
    gated.unet.error = None
    assert engine.submit(Order("a", steps=1)).wait(PATIENCE).state == "done"


def test_one_model_at_a_time_is_in_memory(make: Make, source: Source, tiny: Any) -> None:
    loads: list[str] = []

    def load() -> Any:
        loads.append("other")
        if len(loads) > 2:
            raise ValueError("/secret/place/other.ckpt: it is gone")
        return tiny

    other = Source("other", load, SourceFile("other.ckpt", ""), steps=2)
    engine = make(source, other)
    assert list(engine.models) == ["tiny", "other"]
    assert engine.models["other"].steps == 2
    assert (engine._name, loads) == ("tiny", ["other"])
    job = engine.submit(Order("a", model="other"))
    assert "loading" in [report.state for report in job.reports()] or job.report.state == "done"
    assert job.report.result.recipes[0].model.name == "other.ckpt"
    assert engine.submit(Order("a", steps=1)).wait(PATIENCE).result.recipes[0].model.name == FILE.name
    report = engine.submit(Order("a", model="other")).wait(PATIENCE)
    assert (report.state, report.message) == ("failed", UNEXPECTED)


def test_only_models_of_prompts_are_served(source: Source) -> None:
    classes = Source("classes", lambda: small_model("class"), FILE)
    with pytest.raises(ValueError, match="classes: serve takes models of prompts, not one with ClassEmb"):
        Engine([source, classes])
    with pytest.raises(ValueError, match="different names"):
        Engine([source, source])


def test_warnings_become_notes(engine: Engine) -> None:
    report = engine.submit(Order("cat " * 100, steps=1, watched=False)).wait(PATIENCE)
    assert len(report.notes) == 1
    assert "cat" in report.notes[0]


def test_a_reader_sees_the_last_report_and_a_beat(make: Make, gated: Any) -> None:
    engine = make(gated)
    job = engine.submit(Order("a", steps=1))
    reports = job.reports(beat=0.01)
    assert [next(reports).final for _ in range(3)] == [False] * 3
    with pytest.raises(TimeoutError, match="still"):
        job.wait(0.01)
    gated.unet.open()
    assert list(reports)[-1].state == "done"


def test_the_engine_knows_no_web_framework() -> None:
    folder = Path(drawing.__file__).parent
    for name in ("__init__", "order", "job", "drawing", "engine"):
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not [word for word in ("import gradio", "fastapi", "uvicorn") if word in text]


def test_a_bad_order_never_reaches_the_queue(make: Make, gated: Any) -> None:
    engine = make(gated)
    with pytest.raises(BadOrder):
        engine.submit(Order("a", steps=0))
    assert engine._waiting == []
