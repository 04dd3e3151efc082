"""What the tests of the command line share: runs of it in this process, pictures to start from, and files."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import ldm_core
from ldm_core import cli
from ldm_core.cli import model
from ldm_core.loading.load import bundled_model

ROOT = Path(ldm_core.__file__).parent.parent


SMALL = ("--size", "64")  # where it does not matter what is drawn


@dataclass(frozen=True)
class Result:
    status: int
    out: list[str]  # the lines of standard output
    err: list[str]


Run = Callable[..., Result]


Draw = Callable[..., list[str]]

# The paths of the small models of `support.small_models`, and those that have been loaded.
zoo: dict[str, ldm_core.LatentDiffusion | None] = {}


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundled: ldm_core.LatentDiffusion,
) -> Run:
    """Runs the command line in an empty folder; the bundled model and those of the zoo are read once."""
    monkeypatch.chdir(tmp_path)

    def load(path: Any = None, *, dtype: Any = None, **options: Any) -> ldm_core.LatentDiffusion:
        if path is None and dtype in (None, torch.float32) and options["config"] is None:
            return bundled
        if str(path) not in zoo or dtype is not None:
            return ldm_core.load(path, dtype=dtype, **options)
        if zoo[str(path)] is None:
            zoo[str(path)] = ldm_core.load(path, **options)
        return copy.copy(zoo[str(path)])  # the command line may give its conditioner names

    monkeypatch.setattr(model, "load", load)

    def run(*argv: str) -> Result:
        status = cli.main([str(arg) for arg in argv])
        captured = capsys.readouterr()
        return Result(status, captured.out.splitlines(), captured.err.splitlines())

    return run


@pytest.fixture
def draw(run: Run) -> Draw:
    """The same for a command that must succeed in silence, in two steps on the CPU; the files written."""

    def draw(*argv: str) -> list[str]:
        result = run(*argv, "--steps", "2", "--device", "cpu")
        assert (result.status, result.err) == (0, [])
        return result.out

    return draw


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image).astype(int)


def photo(path: str = "photo.png", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> str:
    """A picture that is different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    rgb = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray((x * 257).astype(np.uint16)).save(path)
    else:
        Image.fromarray(rgb).convert(mode).save(path)
    return path


def mask(path: str = "mask.png", size: tuple[int, int] = (64, 64)) -> str:
    """White on the left half."""
    white = np.zeros(size[::-1], np.uint8)
    white[:, : size[0] // 2] = 255
    Image.fromarray(white).save(path)
    return path


def bundled_tensors() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(bundled_model(), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


COMMAND = [sys.executable, "-m", "ldm_core"]
