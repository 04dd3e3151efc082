"""The command line: files of prompts, A1111's grammar in prompts, new folders and very long options."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from support.cli_runs import SMALL, Draw, Result, Run, pixels

from ldm_core.cli.inputs import MAX_PROMPTS_BYTES, read_prompts, uninterpreted
from ldm_core.recipe import read_recipe

ONE_STEP = (*SMALL, "--steps", "1", "--device", "cpu")


def test_comments_and_blank_lines_are_no_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# animals\n\na cat # 1\n   \t# indented\n  \\#1 dog\n\\\\ fox\n#\n", encoding="utf-8")
    assert read_prompts(str(path)) == ["a cat # 1", "#1 dog", "\\\\ fox"]


def test_a_prompt_of_the_command_line_is_no_comment(draw: Draw) -> None:
    [path] = draw("txt2img", "# one", *SMALL, "-o", "new/")
    assert read_recipe(path).prompt == "# one"


@pytest.mark.parametrize("text", ["", " \n\n", "# nothing but a comment\n"])
def test_a_file_without_prompts_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    Path("prompts.txt").write_text(text)
    result = run("txt2img", "--prompts", "prompts.txt")
    assert (result.status, result.err) == (
        2,
        ["ldm-core: error: --prompts prompts.txt: no prompts in this file"],
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    result = run("txt2img", "--prompts", "-")
    assert (result.status, result.err) == (2, ["ldm-core: error: --prompts -: no prompts in standard input"])


def test_prompts_have_a_size_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PROMPTS_BYTES == 2**24
    with Path("prompts.txt").open("wb") as file:
        file.truncate(2**24 + 1)
    result = run("txt2img", "--prompts", "prompts.txt")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert "prompts.txt: has 16,777,217 bytes, more than 16,777,216" in result.err[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n" * 2**23 + b"b")))
    result = run("txt2img", "--prompts", "-")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert "--prompts -: more than 16,777,216 bytes" in result.err[0]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_prompts_come_from_a_regular_file(run: Run, kind: str) -> None:
    (os.mkfifo if kind == "pipe" else os.mkdir)("prompts")
    result = run("txt2img", "--prompts", "prompts")
    assert (result.status, len(result.err)) == (2, 1)
    assert ("not a regular file" if kind == "pipe" else "Is a directory") in result.err[0]


# A1111's grammar


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a <lora:cats:0.8> b", ["<lora:cats:0.8>"]),
        ("<LORA:x>", ["<LORA:x>"]),
        ("<lyco:x:1> <hypernet:y:.5>", ["<lyco:x:1>"]),
        ("a (red:1.2) cat", ["(red:1.2)"]),
        ("((red hat:1.2))", ["(red hat:1.2)"]),
        ("(a: .5 ) (b:2)", ["(a: .5 )"]),
        ("<lora:x:1> (b:2) (c:3)", ["<lora:x:1>", "(b:2)"]),
        ("(red) [blue] a:1.2 (a: b) \\(a:1.2\\) <cat-toy> < lora", []),
    ],
)
def test_what_is_not_interpreted_is_found(prompt: str, found: list[str]) -> None:
    assert uninterpreted([prompt]) == found


def test_what_is_not_interpreted_is_warned_of_once(run: Run) -> None:
    prompts = ["a (red:1.2) cat <lora:cats:0.8>", "a (blue:0.5) dog <lora:dogs:1>"]
    result = run("txt2img", *prompts, *ONE_STEP)
    assert (result.status, len(result.out)) == (0, 2)
    assert result.err == [
        "ldm-core: warning: this syntax in prompts is not interpreted, but read as ordinary text: "
        "'<lora:cats:0.8>', '(red:1.2)'; apply a LoRA with --lora FILE"
    ]
    assert read_recipe(result.out[0]).prompt == prompts[0]
    result = run("txt2img", "a", "--negative-prompt", "(b:2)", *ONE_STEP)
    assert len(result.err) == 1
    assert result.err[0].endswith("read as ordinary text: '(b:2)'")
    assert run("txt2img", prompts[0], "-q", *ONE_STEP).err == []


def test_a_syntax_reads_the_weights_and_is_kept(run: Run) -> None:
    options = [*ONE_STEP, "--seed", "3"]
    result = run("txt2img", "a (red:1.9) cat", "--prompt-syntax", "a1111", *options, "-o", "a.png")
    assert result == Result(0, ["a.png"], [])
    assert read_recipe("a.png").prompt_syntax == "a1111"
    assert run("txt2img", "--from", "a.png", "-o", "b.png", "--device", "cpu").err == []
    run("txt2img", "a (red:1.9) cat", *options, "-o", "c.png")
    assert (pixels("a.png") == pixels("b.png")).all()
    assert not (pixels("a.png") == pixels("c.png")).all()


def test_a_warning_about_a_prompt_is_bounded(run: Run) -> None:
    result = run("txt2img", f"<lora:{'x' * 10_000}:1> ({'y' * 10_000}:1.1)", "-q", *ONE_STEP)
    assert result.status == 0
    assert uninterpreted(["(" * 50_000 + "a:" + "1" * 50_000]) == []
    [found] = uninterpreted([f"<lora:{'x' * 150}:1>"])
    result = run("txt2img", found, *ONE_STEP)
    assert len(result.err[0]) < 400


# New folders


@pytest.mark.parametrize("num", ["1", "2"])
def test_a_slash_at_the_end_makes_a_new_folder(draw: Draw, num: str) -> None:
    paths = draw("txt2img", "fire", *SMALL, "--num", num, "-o", "new/")
    assert paths == [os.path.join("new", f"txt2img-{k:04d}.png") for k in range(1, int(num) + 1)]
    assert sorted(os.listdir("new")) == [os.path.basename(path) for path in paths]
    more = draw("txt2img", "fire", *SMALL, "-o", "new/")
    assert more == [os.path.join("new", f"txt2img-{int(num) + 1:04d}.png")]


def test_no_folder_is_made_for_a_run_that_fails(run: Run) -> None:
    assert run("txt2img", "x", "--model", "none.ckpt", "-o", "new/").status == 2
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none/new/", "--output: cannot write into none: No such file or directory"),
        ("file.png/", "--output file.png/: a file of this name already exists"),
        ("link/", "--output link/: a file of this name already exists"),
    ],
)
def test_where_no_folder_can_be_made(run: Run, output: str, message: str) -> None:
    Path("file.png").touch()
    Path("link").symlink_to("nowhere")
    before = sorted(os.listdir())
    result = run("txt2img", "x", "-o", output)
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert sorted(os.listdir()) == before


# Options of any length


@pytest.mark.parametrize(
    "option",
    [
        "--num",
        "--batch-size",
        "--steps",
        "--clip-skip",
        "--seed",
        "--guidance",
        "--size",
        "--scheduler",
        "--x",
    ],
)
@pytest.mark.parametrize("value", ["9" * 4000, "9" * 100_000, "x" * 100_000])
def test_messages_about_long_options_are_short(run: Run, option: str, value: str) -> None:
    result = run("txt2img", "x", option, value, "--model", "none.ckpt")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert result.err[0].startswith("ldm-core: error: ")
    assert len(result.err[0]) < 700
