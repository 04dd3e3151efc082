"""Every published model of Stable Diffusion at full size: load, save, load."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.published_names import PUBLISHED
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import read, save
from ldm_core.checkpoint.writer import Pending, write_safetensors
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import PRESETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_list_of_tensors_comes_back_equal(
    name: str, published: dict[str, Any], tmp_path: Path
) -> None:
    """Load, save, load: the same keys and bits, at full size, of two bytes a number to be quick."""
    pool = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).half()
    listed = published[PUBLISHED[name]]["tensors"]
    tensors = {
        key: Pending(pool.dtype, tuple(shape), partial(pooled, pool, i, tuple(shape)))
        for i, (key, shape) in enumerate(listed.items())
    }
    first = tmp_path / "first.safetensors"
    second = tmp_path / f"second.{'ckpt' if len(listed) % 2 else 'safetensors'}"
    write_safetensors(tensors, {}, first)
    model = ldm_core.load(first, dtype=pool.dtype, prediction=PRESETS[name].prediction)
    expected = PRESETS[name]
    if isinstance(expected.conditioner, UnclipConfig):  # the list lacks its image encoder
        expected = replace(expected, conditioner=replace(expected.conditioner, image_encoder=None))
    assert model.config == expected
    save(model, second)
    again = ldm_core.load(second, dtype=pool.dtype)
    assert again.config == expected
    assert set(read(second).tensors) == set(listed)
    for part, network in model.modules.items():
        theirs = again.modules[part].state_dict()
        for key, value in network.state_dict().items():
            assert torch.equal(value.view(torch.int16), theirs[key].view(torch.int16)), key
    before, after = read(first).tensors, read(second).tensors
    made = [key for key in listed if key.endswith(("position_ids", "attn_mask"))]
    assert len(made) == 1
    for key in before.keys() - set(made):
        assert torch.equal(before[key].view(torch.int16), after[key].view(torch.int16)), key
    first.unlink()
    second.unlink()


def pooled(pool: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers from one pool, from another place in it for each tensor, since drawing billions is slow."""
    count, start = math.prod(shape), (number * 7919) % 2**20
    if start + count <= len(pool):
        return pool[start : start + count].reshape(shape)
    repeats = -(-count // (len(pool) - start))
    return pool[start:].repeat(repeats)[:count].reshape(shape)
