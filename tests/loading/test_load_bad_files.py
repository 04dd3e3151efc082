"""Checkpoints that contradict themselves or lack something are refused by name."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_checkpoints import tensors_of

import ldm_core
from ldm_core import checkpoint
from ldm_core.checkpoint import CheckpointError
from ldm_core.loading.load import bundled_model
from ldm_core.model import LatentDiffusion


def test_damaged_metadata_is_said(small: tuple[LatentDiffusion, Path]) -> None:
    _, path = small
    save_file(load_file(path), path, {"ldm_core.config": '{"unet": {"flux": 1}}'})
    with pytest.raises(CheckpointError, match="metadata is damaged: UNetConfig: unknown field"):
        ldm_core.load(path)


def test_missing_extra_and_wrong_tensors(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    tensors = tensors_of(path)
    key = "model.diffusion_model.out.2.bias"

    save_file({k: v for k, v in tensors.items() if k != key}, path)
    with pytest.raises(CheckpointError, match=rf"1 tensor\(s\) missing:\n    {key}"):
        ldm_core.load(path, config=model.config)

    save_file({**tensors, "model.diffusion_model.new.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"not used by the model:\n    model.diffusion_model.new"):
        ldm_core.load(path, config=model.config)

    save_file({**tensors, key: torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match=rf"{key}: expected \(4,\), got \(5,\)"):
        ldm_core.load(path, config=model.config)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(
    small: tuple[LatentDiffusion, Path], value: float, dtype: torch.dtype
) -> None:
    model, path = small
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors_of(path).items()}
    tensors["first_stage_model.quant_conv.bias"][0] = value
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError,
        match=r"1 tensor\(s\) with values that are not finite:\n    first_stage_model.quant_conv.bias",
    ):
        ldm_core.load(path, config=model.config)


def test_large_finite_weights_are_not_mistaken_for_infinite(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    tensors = tensors_of(path)
    tensors["first_stage_model.quant_conv.bias"][:] = 3e38  # their float32 sum overflows
    save_file(tensors, path)
    assert ldm_core.load(path, config=model.config).config == model.config


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_missing_part_is_named(small: tuple[LatentDiffusion, Path], part: str) -> None:
    _, path = small
    save_file({k: v for k, v in tensors_of(path).items() if not k.startswith(part)}, path)
    name = {"model.": "U-Net", "first": "autoencoder", "cond_": "text encoder"}
    expected = next(value for key, value in name.items() if part.startswith(key))
    with pytest.raises(CheckpointError, match=f"contains no {expected}"):
        ldm_core.load(path)


def test_tensors_that_describe_no_model_are_an_error_that_names_the_file(
    small: tuple[LatentDiffusion, Path],
) -> None:
    _, path = small
    tensors = tensors_of(path)
    key = "model.diffusion_model.out.2.weight"
    save_file({**tensors, key: tensors[key][:3]}, path)
    with pytest.raises(CheckpointError, match=r"small.safetensors: the unet outputs 3 channels"):
        ldm_core.load(path)


def test_without_a_map_the_file_may_change_afterwards(tmp_path: Path, bundled: LatentDiffusion) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(bundled, path)
    model = ldm_core.load(path, mmap=False)
    autoencoder = ldm_core.load_part(path, "autoencoder", mmap=False)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)
        file.truncate(100)
    for part, module in {**model.modules, "autoencoder": autoencoder}.items():
        expected = bundled.modules[part].state_dict()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("device", ["bogus", "", "cpu:x", 1.5, None, ["cpu"]])
def test_an_unknown_device_is_named(device: Any) -> None:
    for load in (ldm_core.load, partial(ldm_core.load_part, bundled_model(), "unet")):
        with pytest.raises(ValueError, match=rf"^device {re.escape(repr(device))} cannot be used: "):
            load(device=device)
