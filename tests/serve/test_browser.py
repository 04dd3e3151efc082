"""The page in a real browser: Debian's chromium, headless, driven by Playwright."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor
from serve.conftest import FILE, PATIENCE, serving

import ldm_core
from ldm_core.recipe import read_recipe
from ldm_core.serve import Engine, Source

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright and Debian's chromium")

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


@pytest.fixture(scope="module")
def address(bundled: ldm_core.LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = Engine([Source("emoji", lambda: bundled, FILE, steps=6, guidance_scale=4.0)])
    with serving(engine, tmp_path_factory.mktemp("uploads")) as address:
        yield address
    engine.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, which asks no other host and reports no error."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
    page.on("response", lambda one: errors.append(f"{one.status} {one.url}") if one.status >= 400 else None)
    page.goto(address)
    button(page, "Draw").wait_for()
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == []


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def fill(page: Any, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def wait_for_colour(page: Any, element: Any, colour: str, *, gone: bool = False) -> None:
    """Until the pixel at the centre of an element has the colour, or another one."""
    for _ in range(5 * PATIENCE):
        shot = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
        there = shot.getpixel((shot.width // 2, shot.height // 2)) == ImageColor.getrgb(colour)
        if there != gone:
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"{colour} is {'still' if gone else 'not'} there")


def saved(page: Any, path: Path) -> Image.Image:
    """The picture that the link saves, once it is there."""
    link = page.get_by_role("link", name="Save PNG")
    link.wait_for()
    with page.expect_download() as download:
        link.click()
    download.value.save_as(path)
    return Image.open(path)


def test_draws_a_picture_and_shows_its_steps_its_words_and_its_recipe(page: Any, tmp_path: Path) -> None:
    fill(page, "Prompt", "grinning cat")
    page.get_by_role("button", name="Settings").click()
    fill(page, "Seed", "3")
    button(page, "Draw").click()
    page.get_by_text(re.compile(r"Step \d of 6")).wait_for()
    button(page, "Cancel").wait_for()
    assert saved(page, tmp_path / "cat.png").size == (128, 128)
    recipe = read_recipe(tmp_path / "cat.png")
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("grinning cat", 3, 6)
    button(page, "Cancel").wait_for(state="hidden")
    page.get_by_alt_text("The steps").wait_for()
    page.get_by_role("tab", name="Words").click()
    for word in ("grinning", "cat"):
        page.get_by_alt_text(f"Where {word} acts").wait_for()
    page.get_by_role("tab", name="Recipe").click()
    assert "Seed: 3" in page.locator("#recipe textarea").input_value()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]  # nothing sticks out


def test_cancels_a_picture(page: Any) -> None:
    fill(page, "Prompt", "panda")
    page.get_by_role("button", name="Settings").click()
    steps = page.get_by_label("number input for Steps")
    steps.fill("150")
    steps.press("Tab")
    button(page, "Draw").click()
    page.get_by_text(re.compile(r"Step \d+ of 150")).wait_for()
    button(page, "Cancel").click()
    page.get_by_text("Cancelled", exact=True).wait_for()
    assert button(page, "Draw").is_enabled()
    assert page.get_by_role("link", name="Save PNG").count() == 0


def test_inpaints_with_a_drawn_mask(page: Any, tmp_path: Path) -> None:
    orange = Image.new("RGB", (300, 300), "orange")
    orange.save(tmp_path / "orange.png")
    fill(page, "Prompt", "panda")
    page.get_by_role("tab", name="Inpaint").click()
    page.locator("#editor canvas").first.wait_for()
    page.locator("#editor input[type=file]").set_input_files(tmp_path / "orange.png")
    canvas = page.locator("#editor canvas").first
    wait_for_colour(page, canvas, "orange")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    for k in range(13):
        page.mouse.move(x - 30 + 5 * k, y + k % 3)
    page.mouse.up()
    wait_for_colour(page, canvas, "orange", gone=True)
    button(page, "Draw").click()
    picture = saved(page, tmp_path / "inpainted.png").convert("RGB")
    colour = orange.getpixel((0, 0))
    assert picture.getpixel((3, 3)) == picture.getpixel((124, 124)) == colour  # not painted over
    box = picture.resize((64, 64)).crop((28, 28, 36, 36)).convert("RGB")
    assert any(max(abs(a - b) for a, b in zip(pixel, colour)) > 20 for pixel in box.getdata())


def test_reads_an_error(page: Any) -> None:
    button(page, "Draw").click()
    page.get_by_role("alert").get_by_text("Write a prompt first").wait_for()
    fill(page, "Prompt", "a cat")
    page.get_by_role("tab", name="Redraw").click()
    button(page, "Draw").click()
    page.get_by_role("alert").get_by_text("Give a picture to redraw first.").wait_for()
    assert button(page, "Draw").is_enabled()


def test_goes_on_from_a_picture(page: Any, tmp_path: Path) -> None:
    fill(page, "Prompt", "fire")
    button(page, "Draw").click()
    saved(page, tmp_path / "fire.png")
    button(page, "Redraw this").click()
    page.locator("img[alt='']:visible, [data-testid='image'] img:visible").first.wait_for()
    fill(page, "Prompt", "panda")
    button(page, "Draw").click()
    page.get_by_text(re.compile(r"Step \d of ")).wait_for()
    saved(page, tmp_path / "panda.png")
    recipe = read_recipe(tmp_path / "panda.png")
    assert (recipe.task, recipe.prompt) == ("img2img", "panda")
