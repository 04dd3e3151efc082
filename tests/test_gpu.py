"""What only a CUDA device can show: the same noise, the same pictures, and the file's own type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import SMALL
from PIL import Image
from reference import random_model

import ldm_core
from ldm_core import DDPM, Sampler, set_attention
from ldm_core.attention import BACKENDS
from ldm_core.model import LatentDiffusion
from ldm_core.trajectory import Task, prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

QUICK: dict[str, Any] = {"steps": 4, "guidance_scale": 4.0, "seed": 0, "output": "tensor"}


@pytest.fixture(scope="module", autouse=True)
def exact_float32() -> Any:
    """TensorFloat-32, cuDNN's default, keeps 10 bits of a float32's 23."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def on_gpu() -> LatentDiffusion:
    return ldm_core.load(device="cuda", dtype=torch.float32)


def test_the_noise_is_the_cpus_to_the_bit(bundled: LatentDiffusion, on_gpu: LatentDiffusion) -> None:
    task = Task("fire", num_images=3, seed=5, steps=4)
    ours = prepare(on_gpu, Sampler(on_gpu).scheduler, task)
    assert torch.equal(ours.latent.cpu(), prepare(bundled, Sampler(bundled).scheduler, task).latent)


@pytest.mark.parametrize("scheduler", [None, DDPM()], ids=["DDIM", "DDPM"])
def test_pictures_are_the_cpus(bundled: LatentDiffusion, on_gpu: LatentDiffusion, scheduler: Any) -> None:
    gpu = Sampler(on_gpu, scheduler).txt2img(["fire", "panda"], **QUICK)
    cpu = Sampler(bundled, scheduler).txt2img(["fire", "panda"], **QUICK)
    assert (gpu - cpu).abs().max() < 1e-3
    alone = Sampler(on_gpu, scheduler).txt2img("fire", **QUICK)
    assert (alone[0] - gpu[0]).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
def test_16_bit_types_draw(dtype: torch.dtype | None, bundled: LatentDiffusion) -> None:
    model = ldm_core.load(device="cuda", dtype=dtype)
    assert model.dtype == (dtype or torch.float16), "the file's own type"
    image = Sampler(model).txt2img("fire", **QUICK)
    assert (image - Sampler(bundled).txt2img("fire", **QUICK)).abs().mean() < 0.02


def test_img2img_and_inpainting_run(on_gpu: LatentDiffusion) -> None:
    picture, mask = torch.rand(1, 3, 64, 64), Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    assert Sampler(on_gpu).img2img("fire", picture, 0.5, **QUICK).isfinite().all()
    painted = Sampler(on_gpu).inpaint("fire", picture, mask, **QUICK)
    assert torch.equal(painted[..., :32], picture[..., :32])
    nine = random_model(SMALL["sd1-inpaint"]).to("cuda")
    assert Sampler(nine).inpaint("fire", picture, mask, **QUICK).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_backends_agree(on_gpu: LatentDiffusion, backend: str) -> None:
    expected = Sampler(on_gpu).txt2img("fire", **QUICK)
    try:
        set_attention(on_gpu, backend)
        assert (Sampler(on_gpu).txt2img("fire", **QUICK) - expected).abs().max() < 1e-3
    finally:
        set_attention(on_gpu, "auto")
