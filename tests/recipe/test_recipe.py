"""Recipes: they survive the way into a PNG file and back, other tools can read them, and damage is named."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.examples import examples
from support.recipes import PICTURE, RECIPE

from ldm_core.loading.load import bundled_model
from ldm_core.recipe import (
    AdapterFile,
    Recipe,
    SourceFile,
    file_sha256,
    from_json,
    from_parameters_text,
    read_recipe,
    source_file,
    to_json,
    to_parameters_text,
    without_paths,
    write_png,
)

AWKWARD = [
    "two\nlines\n\nand a blank one",
    "quotes \"double\", 'single' and `back`",
    "a: b, Steps: 3, Sampler: none, Seed: 9",
    "first\nNegative prompt: not this one",
    "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8",
    "кот, 猫, 🐱‍👤, é, \u202eright to left",
    "nul \0 and bell \a and \r carriage return",
    "  leading and trailing space\n",
    "",
    "\\backslash\\n {braces} <html>&amp; %s",
]
source_files = st.builds(
    SourceFile, st.text(), st.text("0123456789abcdef", max_size=64), st.none() | st.text()
)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
recipes = st.builds(
    Recipe,
    task=st.sampled_from(["txt2img", "img2img", "inpaint"]),
    prompt=st.text(),
    negative_prompt=st.text(),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
    width=st.integers(1, 2**16),
    height=st.integers(1, 2**16),
    guidance_scale=numbers,
    guidance_rescale=numbers,
    scheduler=st.text(),
    scheduler_settings=st.dictionaries(st.text(), st.booleans() | st.integers() | st.text() | st.none()),
    model=source_files,
    strength=st.none() | numbers,
    clip_skip=st.none() | st.integers(0, 1000),
    prompt_syntax=st.none() | st.text(),
    config=st.none() | st.text(),
    ema=st.booleans(),
    image=st.none() | source_files,
    mask=st.none() | source_files,
    device=st.none() | st.text(),
    dtype=st.none() | st.text(),
    versions=st.dictionaries(st.text(), st.text()),
)


def chunks(path: Path) -> dict[str, tuple[str, bytes]]:
    """{keyword: (chunk type, what follows the keyword)}, read by the PNG specification alone."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, found = 8, {}
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (crc,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert crc == zlib.crc32(kind + body)
        if kind in (b"tEXt", b"iTXt"):
            keyword, _, rest = body.partition(b"\0")
            found[keyword.decode("latin-1")] = (kind.decode(), rest)
        position += 12 + length
    return found


@given(recipes)
def test_json_gives_an_equal_recipe_back(recipe: Recipe) -> None:
    text = to_json(recipe)
    assert text.isascii()
    assert from_json(text) == recipe


@examples(40)  # each writes a file
@given(recipes)
def test_a_png_gives_an_equal_recipe_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "hypothesis.png"
    write_png(PICTURE, path, recipe)
    assert read_recipe(path) == recipe


def test_what_another_save_left_on_a_picture_is_not_written(tmp_path: Path) -> None:
    """Pillow keeps the options of a save on the picture until it is done; another thread may be saving it."""
    picture, stale = PICTURE.copy(), PngImagePlugin.PngInfo()
    stale.add_text("ldm_core", "of another picture")
    picture.encoderinfo = {"pnginfo": stale}
    write_png(picture, tmp_path / "a.png", RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE


@pytest.mark.parametrize("prompt", AWKWARD)
def test_awkward_prompts_survive_in_a_png(tmp_path: Path, prompt: str) -> None:
    recipe = replace(RECIPE, prompt=prompt, negative_prompt=prompt[::-1])
    write_png(PICTURE, tmp_path / "a.png", recipe)
    assert read_recipe(tmp_path / "a.png") == recipe
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((3, 3)) == PICTURE.getpixel((3, 3))


def test_the_parameters_text_is_what_other_tools_read() -> None:
    assert to_parameters_text(RECIPE) == (
        "grinning cat\n"
        "Steps: 25, Sampler: DDIM, CFG scale: 4, Seed: 1, Size: 64x48, Model hash: 5e1f750e46, Model: emoji, "
        "Version: ldm_core 0.1.0"
    )
    full = replace(
        RECIPE,
        task="img2img",
        prompt="a cat\non a mat",
        negative_prompt="dog",
        guidance_scale=7.5,
        strength=0.6,
        clip_skip=1,
        scheduler_settings={"eta": 0.5},
        model=SourceFile("a, b: c.ckpt", "f" * 64),
        versions={},
    )
    assert to_parameters_text(full) == (
        "a cat\non a mat\n"
        "Negative prompt: dog\n"
        "Steps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 64x48, Model hash: ffffffffff, "
        'Model: "a, b: c", Denoising strength: 0.6, Clip skip: 2, Eta: 0.5'
    )


@pytest.mark.parametrize(
    ("scheduler", "options", "name"),
    [
        ("DDIM", {"eta": 0.0}, "DDIM"),
        ("DDPM", {}, "DDPM"),
        ("PNDM", {"warmup": "plms"}, "PLMS"),
        ("PNDM", {"warmup": "runge_kutta"}, "PNDM"),
        ("DPMSolverMultistep", {"spacing": "trailing"}, "DPM++ 2M"),
        ("DPMSolverMultistep", {"spacing": "karras"}, "DPM++ 2M Karras"),
        ("UniPC", {"order": 2}, "UniPC"),
        ("Euler", {}, "Euler"),
        ("EulerAncestral", {"eta": 1.0}, "Euler a"),
        ("Heun", {}, "Heun"),
        ("LMS", {"spacing": "linspace"}, "LMS"),
        ("LMS", {"spacing": "karras"}, "LMS Karras"),
        ("Mine", {"order": 3}, "Mine"),
    ],
)
def test_sampler_names(scheduler: str, options: dict[str, Any], name: str) -> None:
    recipe = replace(RECIPE, scheduler=scheduler, scheduler_settings=options)
    text = to_parameters_text(recipe)
    assert f"Sampler: {name}," in text
    assert from_parameters_text(text).scheduler == scheduler


# A prompt that the text can hold: no line of it begins like the text's own, and nothing at its ends is lost.
plain = st.text().map(str.strip).filter(lambda text: "\nNegative prompt:" not in f"\n{text}")


@given(plain, plain, st.integers(0, 2**63 - 1), st.floats(0, 100), st.none() | st.floats(0.01, 1))
def test_the_parameters_text_reads_back(
    prompt: str, negative: str, seed: int, guidance: float, strength: float | None
) -> None:
    recipe = replace(
        RECIPE,
        task="txt2img" if strength is None else "img2img",
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        guidance_scale=guidance,
        strength=strength,
    )
    again = from_parameters_text(to_parameters_text(recipe))
    assert again.model.same_as(recipe.model)
    same = ("task", "prompt", "negative_prompt", "seed", "steps", "width", "height", "guidance_scale")
    for name in (*same, "scheduler", "strength"):
        assert getattr(again, name) == getattr(recipe, name), name


def test_the_text_of_another_tool() -> None:
    text = (
        "a red fox, (snow:1.2), <lora:thing:0.8>\nin the evening\n"
        "Negative prompt: blurry, text\nwatermark\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 3861211834, "
        "Size: 512x768, Model hash: CC6CB27103, Model: v1-5-pruned, Clip skip: 2, "
        'Lora hashes: "thing: 0a1b, other: 2c3d", '
        "Version: v1.10.1"
    )
    recipe = from_parameters_text(text)
    assert recipe.prompt == "a red fox, (snow:1.2), <lora:thing:0.8>\nin the evening"
    assert recipe.negative_prompt == "blurry, text\nwatermark"
    assert (recipe.steps, recipe.scheduler, recipe.seed) == (20, "EulerAncestral", 3861211834)
    assert (recipe.width, recipe.height, recipe.guidance_scale) == (512, 768, 7.0)
    assert recipe.clip_skip == 1
    assert recipe.model == SourceFile("v1-5-pruned", "cc6cb27103")
    assert recipe.versions == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no Steps, Sampler, Seed, Size"),
        ("only a prompt", "has no Steps"),
        ("x\nSteps: 20, Sampler: DDIM, Size: 8x8", "has no Seed"),
        ("x\nSteps: many, Sampler: DDIM, Seed: 1, Size: 8x8", "whole number as Steps"),
        ("x\nSteps: 2, Sampler: DDIM, Seed: 1.5, Size: 8x8", "whole number as Seed"),
        ("x\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 8", "a Size of WIDTHxHEIGHT"),
        ("x\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 8x8, CFG scale: high", "a number as CFG scale"),
        ("x\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 8x8, CFG scale: nan", "guidance_scale must be a finite"),
    ],
)
def test_text_without_its_settings(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_parameters_text(text)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(',:"\\\n x0123456789')))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a ValueError comes of text that nobody has checked."""
    for last in (text, f"Steps: {text}, Sampler: DDIM, Seed: 1, Size: 8x8"):
        try:
            recipe = from_parameters_text(last)
        except ValueError:
            continue
        assert recipe.task in ("txt2img", "img2img")


def test_chunks_are_plain_where_they_can_be(tmp_path: Path) -> None:
    write_png(PICTURE, tmp_path / "latin.png", replace(RECIPE, prompt="café"))
    write_png(PICTURE, tmp_path / "wide.png", replace(RECIPE, prompt="猫"))
    latin, wide = chunks(tmp_path / "latin.png"), chunks(tmp_path / "wide.png")
    assert list(latin) == list(wide) == ["parameters", "ldm_core"]
    assert latin["parameters"] == (
        "tEXt",
        to_parameters_text(replace(RECIPE, prompt="café")).encode("latin-1"),
    )
    kind, rest = wide["parameters"]
    assert kind == "iTXt"
    assert rest == b"\0\0\0\0" + to_parameters_text(replace(RECIPE, prompt="猫")).encode()
    assert wide["ldm_core"][0] == "tEXt"
    assert json.loads(wide["ldm_core"][1])["prompt"] == "猫"


def test_a_png_text_has_no_nul(tmp_path: Path) -> None:
    write_png(PICTURE, tmp_path / "a.png", replace(RECIPE, prompt="a\0b"))
    assert b"\0" not in chunks(tmp_path / "a.png")["parameters"][1][4:]
    assert read_recipe(tmp_path / "a.png").prompt == "a\0b"


def without(*names: str, **changes: Any) -> str:
    data = json.loads(to_json(RECIPE)) | changes
    return json.dumps({key: value for key, value in data.items() if key not in names})


DAMAGED = {
    "not JSON": ("{", "not valid JSON"),
    "nested too deeply": ("[" * 100_000, "not valid JSON"),
    "a list": ("[1]", r"must be a mapping, not \[1\]"),
    "no schema": (without("schema"), "schema None"),
    "a later schema": (without(schema=2), "expected a recipe of schema 1, got schema 2"),
    "missing": (without("seed", "model"), "lacks .*seed.*model"),
    "unknown": (without(seeed=1), "unknown entries: 'seeed'"),
    "text for a number": (without(steps="25"), "steps must be a whole number, not '25'"),
    "a bool for a number": (without(seed=True), "seed must be a whole number, not True"),
    "a number for text": (without(prompt=3), "prompt must be text, not 3"),
    "not finite": (without(guidance_scale=float("nan")), "guidance_scale must be a finite number"),
    "another task": (
        without(task="outpaint"),
        "task must be one of txt2img, img2img, inpaint, sample, upscale, imagine, not 'outpaint'",
    ),
    "a model that is text": (without(model="emoji"), "model must be a file's name and checksum"),
    "a model without a name": (without(model={"sha256": "00"}), "the recipe's model lacks name"),
    "a model with more": (
        without(model={"name": "a", "sha256": "", "x": 1}),
        "model has unknown entries: 'x'",
    ),
    "a checksum that is no text": (without(model={"name": "a", "sha256": 5}), "model.sha256 must be text"),
    "an image path that is no text": (
        without(image={"name": "a", "sha256": "", "path": 5}),
        "image.path must be text or nothing",
    ),
    "half a surrogate pair": (without(prompt="\ud83d"), "prompt is not valid Unicode"),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)
    info = PngImagePlugin.PngInfo()
    info.add_text("ldm_core", text)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=f"a.png: .*{message}") as caught:
        read_recipe(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_files_without_a_recipe(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "bare.png")
    with pytest.raises(ValueError, match=r"bare\.png: a PNG file without a recipe"):
        read_recipe(tmp_path / "bare.png")
    PICTURE.save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: not a PNG file"):
        read_recipe(tmp_path / "a.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png: not a PNG file"):
        read_recipe(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.png")


def test_a_png_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    write_png(PICTURE, tmp_path / "a.png", RECIPE)
    data = (tmp_path / "a.png").read_bytes()
    cut = tmp_path / "cut.png"
    outcomes: list[object] = []
    for length in range(0, len(data), 7):
        cut.write_bytes(data[:length])
        try:
            outcomes.append(read_recipe(cut))
        except ValueError as error:
            outcomes.append(str(error).startswith(f"{cut}: "))
    assert outcomes[0] is True
    assert all(outcome is True or outcome == RECIPE for outcome in outcomes)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(PICTURE, path, RECIPE)
    before = path.read_bytes()

    class Broken:
        def copy(self) -> Any:
            return self

        def save(self, file: Any, **_: Any) -> None:
            file.write(b"half a pic")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_png(Broken(), path, RECIPE)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_values_are_checked() -> None:
    with pytest.raises(ValueError, match="prompt must be text, not b'a'"):
        replace(RECIPE, prompt=b"a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strength must be a finite number, not inf"):
        replace(RECIPE, strength=float("inf"))


@given(recipes)
def test_no_path_is_left(recipe: Recipe) -> None:
    adapter = AdapterFile(SourceFile("a.pt", "", "/home/me/a.pt"), 0.5, "a")
    bare = without_paths(replace(recipe, autoencoder=adapter.file, loras=(adapter,), embeddings=(adapter,)))
    assert json.loads(to_json(bare)).items() >= {"prompt": recipe.prompt, "seed": recipe.seed}.items()
    files = [bare.model, bare.image, bare.mask, bare.autoencoder, bare.loras[0].file, bare.embeddings[0].file]
    assert [file.path for file in files if file is not None] == [None] * (6 - files.count(None))
    assert (bare.model.name, bare.loras[0].scale) == (recipe.model.name, 0.5)
    assert without_paths(replace(recipe, config="/home/me/my.yaml")).config == "my.yaml"
    assert without_paths(replace(recipe, config="sd1")).config == "sd1"


def test_checksums() -> None:
    record = source_file(bundled_model(), bundled=True)
    published = (bundled_model().parent / "emoji.safetensors.sha256").read_text().split()[0]
    assert record == SourceFile("emoji.safetensors", published)
    assert file_sha256(bundled_model()) == published
    assert record.same_as(SourceFile("renamed", published[:10]))
    assert not record.same_as(SourceFile("emoji.safetensors", "0" * 64))
    assert not record.same_as(SourceFile("emoji.safetensors", ""))
