"""What only a CUDA device can show: the same noise, the same pictures, and the file's own type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import SMALL
from support.random_models import random_model

import ldm_core
from ldm_core import DDPM, Sampler, set_attention
from ldm_core.attention import BACKENDS
from ldm_core.kernels import set_kernels
from ldm_core.model import LatentDiffusion
from ldm_core.request import Request
from ldm_core.start import prepare
from ldm_core.testing import check_attention
from ldm_core.testing.attention import formula

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
    task = Request(inputs="fire", num_images=3, seed=5, steps=4)
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
    if backend == "triton":
        pytest.importorskip("triton")
    expected = Sampler(on_gpu).txt2img("fire", **QUICK)
    try:
        set_attention(on_gpu, backend)
        assert (Sampler(on_gpu).txt2img("fire", **QUICK) - expected).abs().max() < 1e-3
    finally:
        set_attention(on_gpu, "auto")


# SD1's attention at 512 x 512 pixels: self-attention on three levels, and on the finest to a prompt.
SD1_SIZES = [(4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), SD1_SIZES)
def test_our_kernel_is_the_formula_at_sd1s_sizes(dtype: torch.dtype, n: int, m: int, d: int) -> None:
    """And so are its gradients: within two steps of the largest value, 1e-3 in float16, 8e-3 in bfloat16."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    lengths = (n, m, m)
    q, k, v = (torch.randn(2, x, 8, d, device="cuda").to(dtype).transpose(1, 2) for x in lengths)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = BACKENDS["triton"](*inputs)
    d_out = torch.randn_like(out)
    ours = torch.autograd.grad(out, inputs, d_out)
    bound = 2e-3 if dtype == torch.float16 else 16e-3
    for head in range(8):  # one at a time: the formula's matrix is large in float64
        exact = [x[:, head : head + 1].detach().double().requires_grad_() for x in inputs]
        expected = formula(*exact, causal=False)
        theirs = torch.autograd.grad(expected, exact, d_out[:, head : head + 1].double())
        pairs = zip((out.detach(), *ours), (expected.detach(), *theirs))
        for result, right in pairs:
            difference = (result[:, head : head + 1].double() - right).abs().max()
            assert difference <= bound * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_our_kernel_keeps_the_contract_of_attention(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    check_attention(
        BACKENDS["triton"], dtypes=(dtype,), device="cuda", head_sizes=(40, 64, 80, 160), gradients=True
    )


def test_fused_kernels_draw_the_same_picture(on_gpu: LatentDiffusion) -> None:
    pytest.importorskip("triton")
    expected = Sampler(on_gpu).txt2img("fire", **QUICK)
    try:
        set_kernels(on_gpu, "triton")
        set_attention(on_gpu, "triton")
        assert (Sampler(on_gpu).txt2img("fire", **QUICK) - expected).abs().max() < 1e-3
    finally:
        set_kernels(on_gpu, "torch")
        set_attention(on_gpu, "auto")


def test_compiling_sees_through_our_kernel() -> None:
    pytest.importorskip("triton")
    q, k, v = (torch.randn(2, 4, 64, 40, device="cuda", dtype=torch.float16) for _ in range(3))
    compiled = torch.compile(BACKENDS["triton"], fullgraph=True)
    assert torch.equal(compiled(q, k, v), BACKENDS["triton"](q, k, v))
