"""The command line as a process of its own: signals, pipes and terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.cli_runs import COMMAND, ROOT, SMALL, Result, Run, pixels
from support.configs import TINY

import ldm_core
from ldm_core import cli
from ldm_core.loading.load import build, bundled_model
from ldm_core.recipe import read_recipe, source_file


def subprocess_env() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


# As its own process


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    command = [*COMMAND, "txt2img", "fire", *SMALL, "--num", "500", "--seed", "1", "--steps", "4"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=subprocess_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    paths = [*map(str.strip, lines), *out.split()]
    assert 2 <= len(paths) < 500
    assert re.fullmatch(r"ldm-core: interrupted; (\d+) of 500 pictures are complete and kept\n", err)
    assert f" {len(paths)} of 500" in err
    assert sorted(os.listdir(tmp_path)) == sorted(paths), "no half-written file is left"
    for n, path in enumerate(paths):
        assert pixels(tmp_path / path).shape == (64, 64, 3)
        assert read_recipe(tmp_path / path).seed == 1 + n


def test_a_reader_that_goes_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `… | head -1`: no complaint, and what was drawn is kept."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        result = run("txt2img", "fire", *SMALL, "--num", "3", "--steps", "1", "--device", "cpu")
    assert (result.status, result.err) == (1, [])
    assert os.listdir() == ["txt2img-0001.png"]


def seen_by(primary: int, terminal: Any) -> bytes:
    """What has been written on a pseudo-terminal."""
    print("(end)", file=terminal, flush=True)
    shown = b""
    while not shown.endswith(b"(end)\r\n"):
        shown += os.read(primary, 65536)
    return shown.removesuffix(b"(end)\r\n")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_a_terminal_sees_a_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import pty
    import termios

    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(secondary, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        command = ["txt2img", "fire", *SMALL, "--num", "2", "--steps", "3", "--device", "cpu"]
        result = run(*command)
        assert result == Result(0, ["txt2img-0001.png", "txt2img-0002.png"], [])
        assert b"6/6" in seen_by(primary, terminal), "3 steps of each of 2 pictures"
        assert run(*command, "--quiet").status == 0
        assert seen_by(primary, terminal) == b""
    os.close(primary)


@pytest.mark.slow
def test_convert_inspect_and_draw_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is as good as a file: the same picture, and a recipe that finds it again."""
    small, folder, file = (tmp_path / name for name in ("small.safetensors", "folder", "again.safetensors"))
    ldm_core.checkpoint.save(build(TINY["sd1"]), small, dtype=torch.float16)
    assert cli.main(["convert", str(small), str(folder)]) == 0
    assert cli.main(["convert", str(folder), str(file), "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"{folder}\n{file}\n"
    assert cli.main(["inspect", str(folder), "--json", "--check-values"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["not_finite"], report["missing"]) == ("diffusers", [], [])
    pictures = []
    for name, model in (("folder", folder), ("file", file)):
        picture = tmp_path / f"{name}.png"
        options = ["--model", str(model), "--steps", "2", "--seed", "1", "-q", "-o", str(picture)]
        assert cli.main(["txt2img", "cat", *options]) == 0
        pictures.append(Image.open(picture).tobytes())
    assert pictures[0] == pictures[1]
    again = tmp_path / "again.png"
    assert cli.main(["txt2img", "--from", str(tmp_path / "folder.png"), "-q", "-o", str(again)]) == 0
    assert Image.open(again).tobytes() == pictures[0]


@pytest.mark.slow  # several processes
def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(bundled_model()), str(tmp_path / "m.ckpt")
    assert cli.main(["merge", source, source, target, "--alpha", "0.25"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert cli.main(["merge", source, source, source, target]) == 2
    assert "already exists; --force overwrites" in capsys.readouterr().err
    assert cli.main(["merge", source, source, source, target, "--force"]) == 0
    assert cli.main(["merge", source, str(tmp_path / "x")]) == 2
    assert "merge takes two models, or three" in capsys.readouterr().err


def test_inspect_of_nothing_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.tensor([float("nan")])}, path)
    assert cli.main(["inspect", str(path), "--check-values"]) == 0
    out = capsys.readouterr().out
    assert "not recognised" in out
    assert "1 tensor (weight) with NaN" in out
    assert "not supported" in out


@pytest.mark.slow  # several processes
def test_adapters_and_another_autoencoder(
    tmp_path: Path, bundled: ldm_core.LatentDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    """They change the picture, and the recipe finds them again."""
    layer = bundled.unet.mid.attention.blocks[0].attn2.to_k  # type: ignore[attr-defined]
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    generator = torch.Generator().manual_seed(0)
    lora, word, vae = tmp_path / "style=1.safetensors", tmp_path / "word.pt", tmp_path / "vae.ckpt"
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(4, layer.in_features, generator=generator),
            f"{name}.lora_up.weight": torch.randn(layer.out_features, 4, generator=generator),
        },
        lora,
    )
    width = bundled.config.text_encoder.width
    torch.save({"string_to_param": {"*": torch.randn(2, width, generator=generator)}, "name": "word"}, word)
    torch.save({k: v * 1.01 for k, v in bundled.autoencoder.state_dict().items()}, vae)  # type: ignore[attr-defined]
    from ldm_core.loading.original_file import file_map
    from ldm_core.loading.parts import part_configs

    key_map = file_map(part_configs(bundled.config))
    names = {e.parameters[0]: key for key, e in key_map.items() if "first_stage" in key}
    decoder = {
        names[f"autoencoder.{k}"].removeprefix("first_stage_model."): (
            v[:, :, None, None] if ".attn" in k and v.ndim == 2 else v
        )
        for k, v in torch.load(vae).items()
    }
    torch.save(decoder, vae)

    def draw(*options: str) -> bytes:
        picture = tmp_path / "x.png"
        common = ["--steps", "2", "-q", "--force", "-o", str(picture)]
        assert cli.main(["txt2img", *options, *common]) == 0
        return Image.open(picture).tobytes()

    prompt = ["a word of cats", "--seed", "1"]
    plain = draw(*prompt)
    options = {
        "lora": ["--lora", f"{lora}=0.5"],
        "whole": ["--lora", str(lora)],
        "word": ["--embedding", str(word)],
        "autoencoder": ["--autoencoder", str(vae)],
    }
    pictures = [draw(*prompt, *more) for more in options.values()]
    assert len({plain, *pictures}) == 5
    together = draw(*prompt, *options["lora"], *options["word"], *options["autoencoder"])
    recipe = read_recipe(tmp_path / "x.png")
    assert [(adapter.file.path, adapter.scale) for adapter in recipe.loras] == [(str(lora), 0.5)]
    assert [adapter.name for adapter in recipe.embeddings] == ["word"]
    assert recipe.autoencoder == source_file(vae)
    (tmp_path / "x.png").rename(tmp_path / "recipe.png")
    assert draw("--from", str(tmp_path / "recipe.png"), "--trust-paths") == together
    assert cli.main(["inspect", str(tmp_path / "recipe.png")]) == 0
    assert "VAE: vae.ckpt, Lora hashes: " in capsys.readouterr().out
    assert cli.main(["txt2img", "x", "--lora", f"{lora}=much", "-o", str(tmp_path)]) == 2
    assert "expected a number as the scale" in capsys.readouterr().err
    lora.unlink()
    again = ["--from", str(tmp_path / "recipe.png"), "--trust-paths"]
    assert cli.main(["txt2img", *again, "-o", str(tmp_path)]) == 2
    assert "give it with --lora" in capsys.readouterr().err


DRAWING = (["txt2img", "fire"], "interrupted before the first picture was drawn")
WRITING = (["convert", "a.ckpt", "b.ckpt"], "interrupted; no incomplete file is left")
READING = (["inspect", "a.ckpt"], "interrupted")


@pytest.mark.parametrize(
    ("argv", "message", "script"),
    [
        (*DRAWING, False),
        (*WRITING, True),
        pytest.param(*DRAWING, True, marks=pytest.mark.slow),
        pytest.param(*WRITING, False, marks=pytest.mark.slow),
        pytest.param(*READING, False, marks=pytest.mark.slow),
        pytest.param(*READING, True, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_torch_is_imported(tmp_path: Path, argv: list[str], message: str, script: bool) -> None:
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT); input()")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    # What pip makes of an entry point.
    code = ["-c", "import sys; from ldm_core.cli import main; sys.exit(main())"]
    command = [sys.executable, *code] if script else COMMAND
    done = subprocess.run([*command, *argv], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"ldm-core: {message}\n")
