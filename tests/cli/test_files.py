"""The command line's files: whole or not there, never over another's, never through a planted link."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.checkpoint_files import largest_file
from support.cli_runs import SMALL, Run
from support.configs import TINY
from support.kills import die, killed
from support.recipes import PICTURE, RECIPE

from ldm_core import build, cli
from ldm_core.checkpoint import read, save
from ldm_core.cli import convert as conversion
from ldm_core.cli import draw as drawing
from ldm_core.cli.output import Output, find_output
from ldm_core.recipe import read_recipe


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("file", [None, "a.png"])
@pytest.mark.parametrize("where", ["inside the write", "before the name"])
def test_a_kill_leaves_no_file_under_a_pictures_name(tmp_path: Path, where: str, file: str | None) -> None:
    def output() -> Output:
        return Output(tmp_path, "txt2img", tmp_path / file if file else None)

    def body() -> None:
        def save_half(image: Image.Image, target: Any, **_: Any) -> None:
            target.write(b"half")
            die()

        if where == "inside the write":
            Image.Image.save = save_half  # type: ignore[method-assign, assignment]
        else:
            os.link = os.replace = die  # type: ignore[assignment]
        output().save(PICTURE, RECIPE)

    killed(body)
    assert not list(tmp_path.glob("[!.]*"))
    path = output().save(PICTURE, RECIPE)
    assert path.name == (file or "txt2img-0001.png")
    assert list(tmp_path.iterdir()) == [path]


def test_no_planted_link_is_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    for name in (f".ldm-core-{os.getpid()}.part", f".txt2img-0001.png.{os.getpid()}.part"):
        (tmp_path / name).symlink_to(precious)
    output = find_output(str(tmp_path), "txt2img", count=1, steps=False, force=False)
    assert read_recipe(output.save(PICTURE, RECIPE)) == RECIPE
    assert precious.read_text() == "data"


def test_a_name_of_240_digits_is_not_counted_on_from(tmp_path: Path) -> None:
    """The next number would be too long for a file's name."""
    (tmp_path / f"txt2img-{'9' * 240}.png").touch()
    output = find_output(str(tmp_path), "txt2img", count=1, steps=False, force=False)
    assert output.save(PICTURE, RECIPE).name == "txt2img-0001.png"


def test_several_runs_number_pictures_in_one_folder(tmp_path: Path) -> None:
    outputs = [Output(tmp_path, "txt2img") for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda k: outputs[k % 4].save(PICTURE, RECIPE), range(20)))
    assert sorted(path.name for path in paths) == [f"txt2img-{k:04d}.png" for k in range(1, 21)]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_the_one_file_that_appears_meanwhile_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawing._draw_chunk

    def draw_while_another_writes(*args: Any) -> Any:
        Path("a.png").write_text("mine")
        return drawn(*args)

    monkeypatch.setattr(drawing, "_draw_chunk", draw_while_another_writes)
    result = run("txt2img", "fire", *SMALL, "--steps", "1", "--device", "cpu", "-o", "a.png")
    assert result.status == 2
    assert result.err == ["ldm-core: error: --output a.png: the file already exists; --force overwrites it"]
    assert Path("a.png").read_text() == "mine"
    assert os.listdir() == ["a.png"]


def test_a_full_disk_is_told_with_the_path(run: Run) -> None:
    with largest_file(100):
        result = run("txt2img", "fire", *SMALL, "--steps", "1", "--device", "cpu", "-o", "a.png")
    assert (result.status, result.out) == (2, [])
    assert result.err == ["ldm-core: error: a.png: File too large"]
    assert os.listdir() == []


@pytest.mark.slow  # several processes
@pytest.mark.parametrize("name", ["same.ckpt", "same"])
def test_of_three_converts_to_one_target_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / name
    save(build(TINY["sd1"]), source)
    convert, barrier = conversion.convert, threading.Barrier(3, timeout=60)

    def convert_together(*args: Any, **options: Any) -> Any:
        barrier.wait()  # all have seen that there is no such file
        return convert(*args, **options)

    monkeypatch.setattr(conversion, "convert", convert_together)
    with ThreadPoolExecutor(3) as threads:
        statuses = list(threads.map(cli.main, [["convert", str(source), str(target)]] * 3))
    assert sorted(statuses) == [0, 2, 2]
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert captured.err.count("\n") == captured.err.count("already exists") == 2
    if name == "same.ckpt":
        assert read(target).tensors.keys() == read(source).tensors.keys()
    assert sorted(tmp_path.iterdir()) == sorted([source, target])


def test_merge_keeps_a_file_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "m.ckpt"
    save(build(TINY["sd1"]), source)
    weighted_sum = conversion.weighted_sum

    def while_another_writes(*args: Any, **options: Any) -> Any:
        target.write_text("mine")
        return weighted_sum(*args, **options)

    monkeypatch.setattr(conversion, "weighted_sum", while_another_writes)
    assert cli.main(["merge", str(source), str(source), str(target)]) == 2
    assert "m.ckpt: the file already exists; --force overwrites it" in capsys.readouterr().err
    assert target.read_text() == "mine"
