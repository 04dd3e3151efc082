"""Converting and merging: equal tensors whatever the way, sums as written, and bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.reference import random_model
from support.weights import same_weights
from support.wild_files import lightning_file, trained
from torch import Tensor

import ldm_core
from ldm_core import build
from ldm_core.checkpoint import CheckpointError, read, save
from ldm_core.config import PRESETS
from ldm_core.loading import convert as conversion
from ldm_core.loading.convert import add_difference, convert, merge_checkpoints, weighted_sum
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion


@pytest.fixture(scope="module")
def models() -> list[LatentDiffusion]:
    return [random_model(TINY["sd1"], seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def files(models: list[LatentDiffusion], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same architecture in three layouts."""
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / "a.safetensors", folder / "b.ckpt", folder / "c"]
    save(models[0], paths[0])
    save(models[1], paths[1])
    save(models[2], paths[2], layout="diffusers")
    return paths


@pytest.mark.slow  # every layout
def test_there_and_back_through_every_layout(
    files: list[Path], models: list[LatentDiffusion], tmp_path: Path
) -> None:
    convert(files[0], tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "file.ckpt")
    config = convert(tmp_path / "file.ckpt", tmp_path / "file.safetensors")
    assert same_weights(ldm_core.load(tmp_path / "file.safetensors"), models[0])
    first, last = read(files[0]).tensors, read(tmp_path / "file.safetensors").tensors
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    assert config.text_encoder == models[0].config.text_encoder


def test_a_training_checkpoint_becomes_a_small_file(models: list[LatentDiffusion], tmp_path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in file_tensors(models[0]).items()}
    lightning_file(trained(tensors), tmp_path / "last.ckpt")
    convert(
        tmp_path / "last.ckpt",
        tmp_path / "ema.safetensors",
        config=TINY["sd1"],
        ema=True,
        dtype=torch.float16,
    )
    out = read(tmp_path / "ema.safetensors").tensors
    assert out.keys() == tensors.keys()
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(out[key], (tensors[key] + 1).half())


def test_what_load_refuses_is_not_converted(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no averaged"):
        convert(files[0], tmp_path / "out.safetensors", ema=True)
    with pytest.raises(CheckpointError, match="expected one of the suffixes"):
        convert(files[0], tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_a_type_are_not_written(files: list[Path], tmp_path: Path) -> None:
    model = random_model(TINY["sd1"])
    with torch.no_grad():
        model.unet.conv_in.weight[0] = 40_000.0
    save(model, tmp_path / "large.safetensors", dtype=torch.float16)
    with torch.no_grad():
        model.unet.conv_in.weight[0] = 80_000.0
    key, out = "input_blocks.0.0.weight", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=f"{key} has values .* too large for float16"):
        save(model, out, dtype=torch.float16)
    with pytest.raises(CheckpointError, match=f"{key} has values .* too large for float16"):
        merge_checkpoints([(tmp_path / "large.safetensors", 2.0)], out)
    with pytest.raises(CheckpointError, match="floating-point type of torch, not 'float16'"):
        save(model, out, dtype="float16")  # type: ignore[arg-type]
    assert not out.exists()


def test_a_model_that_may_predict_either_must_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = conversion.open_weights

    def both(*args: Any, **options: Any) -> Any:
        opened = weights(*args, **options)
        return replace(opened, decision=replace(opened.decision, choices=("v", "eps")))

    save(random_model(TINY["sd2"]), tmp_path / "a.safetensors")
    monkeypatch.setattr(conversion, "open_weights", both)
    with pytest.raises(CheckpointError, match="prediction='v' or prediction='eps'"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")


def state(model: LatentDiffusion) -> dict[str, Tensor]:
    return {f"{part}.{n}": v for part, m in model.modules.items() for n, v in m.state_dict().items()}


def test_sums_are_what_they_say(files: list[Path], models: list[LatentDiffusion], tmp_path: Path) -> None:
    a, b, c = (state(model) for model in models)
    weighted_sum(files[0], files[1], tmp_path / "sum.safetensors", 0.3)
    add_difference(files[0], files[1], files[2], tmp_path / "difference.ckpt", 0.5)
    merge_checkpoints(
        [(files[0], 0.5), (files[1], 0.25), (files[2], 0.25)], tmp_path / "three", dtype=torch.float16
    )
    got = [state(ldm_core.load(tmp_path / name)) for name in ("sum.safetensors", "difference.ckpt", "three")]
    for name in a:
        wide = [tensor.double() for tensor in (a[name], b[name], c[name])]
        scale = max(float(tensor.abs().max()) for tensor in wide)
        assert (got[0][name] - (0.7 * wide[0] + 0.3 * wide[1])).abs().max() < 1e-6 * scale, name
        assert (got[1][name] - (wide[0] + 0.5 * (wide[1] - wide[2]))).abs().max() < 1e-6 * scale, name
        expected = 0.5 * wide[0] + 0.25 * wide[1] + 0.25 * wide[2]
        half_a_place = (
            2**-11
        )  # of float16: the most that rounding to nearest can be wrong by, on any processor
        assert (got[2][name] - expected).abs().max() < half_a_place * scale, name


def test_a_model_merged_with_itself_is_itself(files: list[Path], models: Any, tmp_path: Path) -> None:
    weighted_sum(files[0], files[0], tmp_path / "same.safetensors", 0.25)
    assert same_weights(ldm_core.load(tmp_path / "same.safetensors"), models[0])


def test_models_of_different_architecture_are_refused(files: list[Path], tmp_path: Path) -> None:
    other = replace(TINY["sd1"], unet=replace(TINY["sd1"].unet, num_res_blocks=2), prediction="v")
    save(build(other), tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match="have different architectures: they differ in unet, prediction"
    ):
        weighted_sum(files[0], tmp_path / "other.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="at least one model"):
        merge_checkpoints([], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_merging_holds_one_tensor_at_a_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    original = conversion._sum

    def counted(*args: Any) -> Tensor:
        nonlocal most
        result = original(*args)
        alive.add(result)
        most = max(most, len(alive))
        return result

    monkeypatch.setattr(conversion, "_sum", counted)
    weighted_sum(files[0], files[1], tmp_path / "out.safetensors")
    assert most == 1


MEASURE = """
import sys, torch, resource
from ldm_core.loading.convert import convert, weighted_sum
def anonymous():
    return max(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before, peak = anonymous(), 0
from ldm_core.checkpoint import writer
old = writer.{hook}
def watched(*args, **options):
    global peak
    result = old(*args, **options)
    peak = max(peak, anonymous())
    return result
writer.{hook} = watched
{call}
print((peak - before) * 1024)
"""


def test_pairs_may_come_from_anything_that_has_them(tmp_path: Path) -> None:
    model = random_model(TINY["sd1"])
    save(model, tmp_path / "a.safetensors")
    weights = {tmp_path / "a.safetensors": 1.0}
    for pairs in (weights.items(), iter(weights.items()), tuple(weights.items())):
        assert merge_checkpoints(pairs, tmp_path / "b.safetensors") == model.config


@pytest.mark.parametrize(
    "models",
    [
        *(Path("a.ckpt"), b"ab", iter([])),
        *(None, 3, "a.ckpt", {}, {"a.ckpt": 1.0}, "ab", [3], ["ab"], [("a.ckpt",)], [("a.ckpt", 0.5, 0.5)]),
        *([("a.ckpt", "half")], [("a.ckpt", None)], [("a.ckpt", float("nan"))], [("a.ckpt", 10**400)]),
        *([("a.ckpt", True)], [(0.5, "a.ckpt")], [(None, 1.0)], [[["a"], 1.0]], [("a.ckpt", 1j)]),
    ],
)
def test_what_are_no_pairs_is_not_merged(models: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^merging needs "):
        merge_checkpoints(models, tmp_path / "out.safetensors")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # a model of 4 GB
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_at_full_size(tmp_path: Path) -> None:
    """Beside the mapped file, which the system can drop at any time, memory is 1.3 x the largest tensor."""
    model = build(PRESETS["sd1"])
    first, second = str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")
    save(model, first)
    largest = max(p.numel() * 4 for module in model.modules.values() for p in module.parameters())
    del model
    ways = {
        "safetensors to ckpt": f"convert({first!r}, {second!r})",
        "ckpt to diffusers in float16": f"convert({second!r}, {str(tmp_path / 'c')!r}, dtype=torch.float16)",
        "weighted sum": f"weighted_sum({first!r}, {first!r}, {str(tmp_path / 'd.safetensors')!r})",
    }
    for way, call in ways.items():
        code = MEASURE.format(hook="_make_bytes", call=call)
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
        )
        grown = int(run.stdout)
        print(f"\n{way}: {grown / largest:.2f} x the largest tensor")
        # The networks' own modules, on the meta device, and Python come on top.
        assert grown < 1.3 * largest + 64 * 2**20, way


def test_sd2_as_a_file_and_as_a_folder_is_one_architecture(tmp_path: Path) -> None:
    """The folder lacks the text encoder's last block; the sum does, too."""
    model = random_model(TINY["sd2"])
    save(model, tmp_path / "a.safetensors")
    save(model, tmp_path / "v1.5", layout="diffusers")
    config = merge_checkpoints(
        [(tmp_path / "a.safetensors", 0.5), (tmp_path / "v1.5", 0.5)], tmp_path / "v2.0"
    )
    assert config.text_encoder.layers == model.config.text_encoder.layers - 1
    loaded = ldm_core.load(tmp_path / "v2.0")
    tokens = model.tokenizer(["a cat"])
    assert torch.equal(loaded.text_encoder(tokens), model.text_encoder(tokens))
    with pytest.raises(CheckpointError, match="a finite number, not"):
        weighted_sum(tmp_path / "v1.5", tmp_path / "v1.5", tmp_path / "x.ckpt", float("nan"))
