"""What files say never reaches the terminal as codes that it obeys, whatever command shows it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from support.cli_runs import SMALL, Run, bundled_tensors

from ldm_core.cli.printing import print_path
from ldm_core.recipe import Recipe, SourceFile, to_json
from ldm_core.support.printable import few, printable, shown

CODES = "\x1b[2J\x1b]0;x\x07\x7f\x9b31m\u202egnp\u2066\u2028\u200b"
HARMLESS = r"\x1b[2J\x1b]0;x\x07\x7f\x9b31m\u202egnp\u2066\u2028\u200b"


def bundled(path: str, **metadata: str) -> None:
    tensors, stated = bundled_tensors()
    save_file(tensors, path, {**stated, **{key.replace("__", "."): value for key, value in metadata.items()}})


def picture(name: str, **fields: object) -> None:
    values = {"prompt": "x", "scheduler": "DDIM", "negative_prompt": "", **fields}
    recipe = Recipe(
        "txt2img",
        seed=0,
        steps=2,
        width=64,
        height=64,
        guidance_scale=1.0,
        model=SourceFile("m", "00"),
        **values,
    )  # type: ignore[arg-type]
    info = PngImagePlugin.PngInfo()
    info.add_text("ldm_core", to_json(recipe))
    Image.new("RGB", (8, 8)).save(name, pnginfo=info)


def metadata_key() -> None:
    save_file({"x": torch.ones(1)}, "x.safetensors", {CODES: CODES})


def tensor_name() -> None:
    save_file({CODES: torch.ones(1)}, "x.safetensors")


def config_value() -> None:
    bundled("x.safetensors", ldm_core__config=json.dumps({CODES: CODES}))


def schedule_value() -> None:
    bundled("x.safetensors", ldm_core__config=json.dumps({"noise_schedule": {"beta_schedule": CODES}}))


def lora() -> None:
    save_file({f"{CODES}.lora_down.weight": torch.ones(4, 4)}, f"{CODES}.safetensors")


# What there is, and the commands that show it.
SHOWN: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "metadata": (metadata_key, ("inspect", "x.safetensors")),
    "metadata as JSON": (metadata_key, ("inspect", "x.safetensors", "--json")),
    "a tensor's name": (tensor_name, ("inspect", "x.safetensors")),
    "a tensor's name to convert": (tensor_name, ("convert", "x.safetensors", "y.ckpt")),
    "a tensor's name to draw with": (tensor_name, ("txt2img", "x", "--model", "x.safetensors")),
    "a configuration": (config_value, ("txt2img", "x", "--model", "x.safetensors")),
    "a configuration to inspect": (config_value, ("inspect", "x.safetensors")),
    "a configuration to merge": (config_value, ("merge", "x.safetensors", "x.safetensors", "y.ckpt")),
    "a schedule": (schedule_value, ("convert", "x.safetensors", "y.ckpt")),
    "a file's name": (lambda: None, ("inspect", CODES)),
    "a name to draw with": (lambda: None, ("txt2img", "x", "--model", CODES)),
    "a name to redraw": (lambda: None, ("img2img", "x", "--image", CODES)),
    "a name of prompts": (lambda: None, ("txt2img", "--prompts", CODES)),
    "an output": (lambda: None, ("txt2img", "x", "-o", CODES)),
    "an option": (lambda: None, ("txt2img", f"--{CODES}")),
    "a device": (lambda: None, ("txt2img", "x", "--device", CODES)),
    "a LoRA": (lora, ("txt2img", "x", *SMALL, "--lora", f"{CODES}.safetensors")),
    "a LoRA to inspect": (lora, ("inspect", f"{CODES}.safetensors")),
    "a prompt of a recipe": (lambda: picture("a.png", prompt=CODES), ("inspect", "a.png")),
    "a recipe as JSON": (lambda: picture("a.png", prompt=CODES), ("inspect", "a.png", "--json")),
    "a scheduler of a recipe": (lambda: picture("a.png", scheduler=CODES), ("txt2img", "--from", "a.png")),
    "a scheduler to inspect": (lambda: picture("a.png", scheduler=CODES), ("inspect", "a.png")),
    "a file of a recipe": (
        lambda: picture("a.png", image=SourceFile(CODES, "00", CODES)),
        ("img2img", "--from", "a.png"),
    ),
    "a long prompt": (
        lambda: Path("p.txt").write_text(CODES + "word " * 100, encoding="utf-8"),
        ("txt2img", "--prompts", "p.txt", *SMALL, "--steps", "1", "--device", "cpu"),
    ),
}


def is_harmless(text: str) -> bool:
    return all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text)


@pytest.mark.parametrize("what", SHOWN)
def test_codes_do_not_reach_the_terminal(what: str, run: Run) -> None:
    make, command = SHOWN[what]
    make()
    result = run(*command)
    assert result.status in (0, 2)
    assert result.out or result.err
    for line in (*result.out, *result.err):
        assert is_harmless(line), line
    if what != "a long prompt":
        assert re.search("x1b|u001b", "".join((*result.out, *result.err))), "the text is shown"
    if result.status == 2:
        assert len(result.err) == 1


def test_a_recipe_cannot_forge_the_lines_after_it(run: Run) -> None:
    picture("a.png", prompt="a cat\nSteps: 1, Sampler: forged", negative_prompt="b\r\nSteps: 2")
    out = run("inspect", "a.png").out
    assert out[0] == r"a cat\nSteps: 1, Sampler: forged"
    assert out[1] == r"Negative prompt: b\r\nSteps: 2"
    assert len(out) == 3


def test_paths_are_as_they_are_for_programs_and_escaped_for_people(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = "\x1b[2J.png"
    drawn = ("txt2img", "x", *SMALL, "--steps", "1", "--device", "cpu", "--force", "-o", odd)
    assert run(*drawn).out == [odd]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*drawn).out == [r"\x1b[2J.png"]


def test_a_path_that_is_no_text_is_given_as_its_bytes(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    print_path(os.fsdecode(b"\xff.png"))
    assert capsysbinary.readouterr().out == b"\xff.png\n"


def test_a_path_goes_where_there_are_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    print_path("\xff.png")
    assert sys.stdout.getvalue() == "\xff.png\n"


def test_printable_keeps_what_can_be_read() -> None:
    assert printable("grün 猫 😀\u00a0\u3000x") == "grün 猫 😀\u00a0\u3000x"
    assert printable(CODES) == HARMLESS
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert is_harmless(shown({CODES: [CODES] * 1000}))
    assert len(shown("x" * 10**6)) < 100


def test_few_names_of_many() -> None:
    assert few([]) == ""
    assert few(["a", "b"], 2) == "a, b"
    assert few(["a", "b", "c"], 2, "; ") == "a; b; … (3 in all)"
