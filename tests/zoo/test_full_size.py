"""Models of the latent diffusion paper at their published size: built, loaded, and one step drawn.

The files have random weights, up to 7 GB, hence `slow`.
"""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.timed_loading import measure
from torch import Tensor

import ldm_core
from ldm_core.checkpoint.writer import Pending, write_safetensors
from ldm_core.config import PRESETS

pytestmark = pytest.mark.slow

MODELS = {
    "cin256-v2": ("latent-diffusion/latent-diffusion/cin256-v2", "207, guidance_scale=3.0"),
    "text2img-large": ("latent-diffusion/latent-diffusion/txt2img-1p4B-eval", "'a cat', guidance_scale=5.0"),
    "rdm768": ("latent-diffusion/retrieval-augmented-diffusion/768x768", "torch.randn(1, 2, 768)"),
    "bsr-sr": ("latent-diffusion/ldm/bsr_sr", "torch.rand(1, 3, 64, 64)"),
}
DRAW = """
import sys, torch, ldm_core
model = ldm_core.load(sys.argv[1])
assert model.config == ldm_core.config.PRESETS[sys.argv[2]]
image = ldm_core.Sampler(model).sample({inputs}, steps=1, seed=0, output="tensor")
assert image.shape == (1, 3, model.config.image_size, model.config.image_size), image.shape
assert image.isfinite().all() and image.std() > 0
"""


def pooled(pool: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers from one pool, from another place in it for each tensor; norms and biases near 1 and 0."""
    count, start = math.prod(shape), (number * 7919) % 2**20
    repeats = -(-count // (len(pool) - start))
    values = pool[start:].repeat(repeats)[:count].reshape(shape)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 0
    return values / math.sqrt(fan_in) if fan_in else 1 + values / 10


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_loads_and_draws(name: str, published: dict[str, Any], tmp_path: Path) -> None:
    """A file of exactly the published tensors: at most 1.15 times its size in memory to load it."""
    built = ldm_core.build(PRESETS[name], device="meta")
    assert all(p.is_meta for network in built.modules.values() for p in network.parameters())
    key, inputs = MODELS[name]
    pool = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    tensors = {
        key: Pending(pool.dtype, tuple(shape), partial(pooled, pool, i, tuple(shape)))
        for i, (key, shape) in enumerate(published[key]["tensors"].items())
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(tensors, {}, path)
    try:
        peak = measure(path, "ldm_core")["peak"] / path.stat().st_size
        print(f"{name}: {path.stat().st_size / 2**30:.2f} GiB, peak {peak:.3f} × the file")
        assert peak <= 1.15
        subprocess.run([sys.executable, "-c", DRAW.format(inputs=inputs), str(path), name], check=True)
    finally:
        path.unlink()
