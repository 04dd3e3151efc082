"""Every task of the library on the stand-in for a GPU: sampler/test_stand_in_device.py runs this file.

Not collected by itself, since the device is registered for the whole process. A run on the device must agree
with one on the CPU, where some layers are computed in another order. Between the first call of the U-Net and
the end of the last one nothing may be read back, since the host would then wait for the device in every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.small_models import WIDTH, small_model
from support.stand_in_device import DeviceTensor, Traffic, host, traffic
from support.zoo import small
from torch import Tensor

import ldm_core
from ldm_core import (
    DDIM,
    DDPM,
    LMS,
    PNDM,
    ClassifierFreeGuidance,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    LatentDiffusion,
    Sampler,
    UniPC,
    merge_tokens,
    windowed,
)
from ldm_core.unet import UNet
from ldm_core.watch import Recorder, fit_preview

STEPS = 3
QUICK: dict[str, Any] = {"steps": STEPS, "seed": 1, "output": "tensor"}
TOLERANCE = 1e-4  # of pixels in [0, 1]; measured: at most 2e-6


@dataclass
class Watched:
    """The copies during a run, and how many there had been before and after each call of the U-Net."""

    copies: Traffic
    calls: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)

    def within_steps(self) -> Traffic:
        """The copies between the first call and the end of the last one."""
        (read, sent), (read_end, sent_end) = self.calls[0][0], self.calls[-1][1]
        return Traffic(self.copies.readbacks[read:read_end], self.copies.uploads[sent:sent_end])


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Note what the U-Net gets, and the copies around it. A forward hook would change how it is computed."""
    forward = UNet.forward
    with traffic() as copies, monkeypatch.context() as patch:
        noted = Watched(copies)

        def count() -> tuple[int, int]:
            return len(copies.readbacks), len(copies.uploads)

        def noting(unet: UNet, x: Tensor, t: Any, context: Any = None, y: Any = None) -> Tensor:
            before = count()
            tensors = [x, *(value for value in (getattr(context, "tensor", context), y) if value is not None)]
            assert all(isinstance(value, DeviceTensor) for value in tensors)
            dtype = next(unet.parameters()).dtype
            assert all(value.dtype == dtype for value in tensors if value.is_floating_point())
            result = forward(unet, x, t, context, y)
            noted.calls.append((before, count()))
            return result

        patch.setattr(UNet, "forward", noting)
        yield noted


Draw = Callable[[Sampler], Tensor]


def agree(
    model: LatentDiffusion,
    draw: Draw,
    monkeypatch: pytest.MonkeyPatch,
    uploads: int = 0,
    change: Callable[[LatentDiffusion], LatentDiffusion] = lambda model: model,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> None:
    """The run on the device gives the CPU's picture, reads nothing back and sends `uploads` in all steps."""
    here, there = change(model), change(copy.deepcopy(model).to("gpu"))
    assert there.device.type == "gpu"
    with watched(monkeypatch) as seen:
        result = draw(Sampler(there, **options))
    assert seen.within_steps().readbacks == []
    assert len(seen.within_steps().uploads) == uploads, seen.within_steps().uploads
    assert (host(result) - draw(Sampler(here, **options))).abs().max() < tolerance


def pictures(count: int = 1, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def mask(size: int = 32) -> Tensor:
    return torch.ones(1, 1, size, size).tril()


@pytest.fixture(scope="module")
def sd1() -> LatentDiffusion:
    torch.manual_seed(0)
    return ldm_core.build(TINY["sd1"])


# --- the device itself ----------------------------------------------------------------------------------


def test_the_device_is_as_strict_as_a_real_one() -> None:
    here, there = torch.ones(2), torch.ones(2, device="gpu")
    for mixed in (lambda: here + there, lambda: torch.cat([there, here]), lambda: there.lerp(here, 0.5)):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            mixed()
    with traffic() as counted:
        assert (there * 2 + torch.tensor(1.0)).device.type == "gpu"
    assert counted == Traffic()


def test_the_device_counts_what_waits_for_it() -> None:
    x = torch.arange(4.0, device="gpu")
    with traffic() as counted:
        waiting = [
            lambda: float(x.sum()), lambda: bool((x > 0).all()), lambda: x.cpu(), lambda: x.to("cpu"),
            lambda: torch.equal(x, x), lambda: x[x > 1], lambda: x.nonzero(), lambda: torch.zeros(4).copy_(x),
        ]  # fmt: skip
        for number, wait in enumerate(waiting, 1):
            wait()
            assert len(counted.readbacks) == number
    assert counted.uploads == []


def test_the_device_counts_what_is_sent_to_it() -> None:
    x = torch.arange(4.0, device="gpu")
    with traffic() as counted:
        sending = [
            lambda: torch.ones(2).to("gpu"), lambda: torch.tensor([1.0], device="gpu"), lambda: x[[0, 2]],
            lambda: x.copy_(torch.ones(4)), lambda: torch.ones(4).to(x), lambda: x.new_tensor([2.0]),
        ]  # fmt: skip
        for number, send in enumerate(sending, 1):
            send()
            assert len(counted.uploads) == number
        torch.full((2,), 3.0, device="gpu")
        torch.arange(3, device="gpu")
        assert len(counted.uploads) == len(sending)
    assert counted.readbacks == []


# --- schedulers and guidance ----------------------------------------------------------------------------

SCHEDULERS = [DDIM(), PNDM(), DPMSolverMultistep(), UniPC(), Euler(), Heun(), LMS()]
NOISY = [DDIM(eta=1.0), DDPM(), EulerAncestral()]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_a_scheduler_without_noise(
    scheduler: Any, sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(sd1, lambda s: s.txt2img(["a cat", "a dog"], **QUICK), monkeypatch, scheduler=scheduler)


@pytest.mark.parametrize("scheduler", NOISY, ids=lambda s: type(s).__name__)
def test_a_scheduler_with_noise_sends_it_once_a_step(
    scheduler: Any, sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's noise comes before the first call of the U-Net."""
    draw: Draw = lambda s: s.txt2img(["a cat", "a dog"], **QUICK)  # noqa: E731
    agree(sd1, draw, monkeypatch, STEPS - 1, scheduler=scheduler)


GUIDANCE = [
    ClassifierFreeGuidance(rescale=0.7),
    ClassifierFreeGuidance(batched=False),
    ClassifierFreeGuidance(interval=(0.0, 0.5)),
]


@pytest.mark.parametrize("guidance", GUIDANCE, ids=str)
def test_guidance(guidance: Any, sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    draw: Draw = lambda s: s.txt2img("a cat", negative_prompt="a dog", **QUICK)  # noqa: E731
    agree(sd1, draw, monkeypatch, guidance=guidance)


@pytest.mark.slow
def test_chunks_of_a_batch(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(sd1, lambda s: s.txt2img("a cat", num_images=3, **QUICK), monkeypatch, batch_size=2)


# --- tasks ----------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[str, Draw]] = {
    "img2img": ("sd1", lambda s: s.img2img("a cat", pictures(), 0.6, **QUICK)),
    "inpaint, known part restored": ("sd1", lambda s: s.inpaint("a cat", pictures(), mask(), **QUICK)),
    "inpaint, mask as input": ("sd1-inpaint", lambda s: s.inpaint("a cat", pictures(), mask(), **QUICK)),
    "unconditional": ("unconditional", lambda s: s.sample(None, num_images=2, **QUICK)),
    "classes": ("class", lambda s: s.sample([3, 5], **QUICK)),
    "classes without guidance": ("class-unguided", lambda s: s.sample([3, 5], **QUICK)),
    "layout, BERT": ("layout", lambda s: s.sample([[(1, 0.1, 0.1, 0.5, 0.5)]], **QUICK)),
    "semantic map": ("map", lambda s: s.sample(torch.arange(1024).view(1, 32, 32) % 6, **QUICK)),
    "super-resolution": ("sr", lambda s: s.upscale(pictures(size=8), **QUICK)),
    "x4 upscaler": ("x4", lambda s: s.upscale(pictures(size=8), "a cat", noise_level=20, **QUICK)),
    "LDM inpainting": ("inpainting", lambda s: s.inpaint(None, pictures(size=16), mask(16), **QUICK)),
    "depth": ("depth", lambda s: s.sample({"prompt": "a cat", "depth": pictures()[:, :1]}, **QUICK)),
    "retrieval": ("retrieval", lambda s: s.sample(torch.ones(1, 4, WIDTH), **QUICK)),
    "unclip": ("unclip", lambda s: s.sample({"prompt": "a", "embedding": torch.ones(1, WIDTH)}, **QUICK)),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, draw = TASKS[task]
    torch.manual_seed(0)
    model = ldm_core.build(TINY[kind]) if kind in TINY else small_model(kind)
    agree(model, draw, monkeypatch)


@pytest.mark.slow
def test_a_bert_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = ldm_core.build(small("text2img-large"))
    agree(model, lambda s: s.txt2img("a cat", **QUICK), monkeypatch)


# --- larger pictures, adapters, watching, other types ---------------------------------------------------


def test_windows(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of each of the three windows are sent in each step, the last ones after the last call."""
    draw: Draw = lambda s: s.txt2img("a cat", width=64, **QUICK)  # noqa: E731
    agree(sd1, draw, monkeypatch, 3 * STEPS - 1, change=lambda model: windowed(model, size=16, stride=8))


def adapter_file(path: Path, model: LatentDiffusion) -> Path:
    """A LoRA of kohya-ss for the U-Net's attention in the middle."""
    from safetensors.torch import save_file

    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_{}."
    tensors: dict[str, Tensor] = {}
    attention = model.unet.mid.attention.blocks[0].attn2  # type: ignore[attr-defined]
    for name in ("q", "k"):
        rows, columns = getattr(attention, f"to_{name}").weight.shape
        shapes = {"lora_down.weight": (2, columns), "lora_up.weight": (rows, 2)}
        tensors |= {layer.format(name) + key: torch.full(shape, 0.1) for key, shape in shapes.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora(fused: bool, sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An adapter's factors are sent at the first call; later ones use them."""
    path = adapter_file(tmp_path / "style.safetensors", sd1)

    def adapted(model: LatentDiffusion) -> LatentDiffusion:
        changed = copy.deepcopy(model)
        adapter = ldm_core.apply_lora(changed, path)
        if fused:
            adapter.fuse()
        return changed

    agree(sd1, lambda s: s.txt2img("a cat", **QUICK), monkeypatch, 0 if fused else 4, change=adapted)


def test_a_learned_word(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "word.pt"
    torch.save({"<cat-toy>": torch.rand(2, 64)}, path)

    def taught(model: LatentDiffusion) -> LatentDiffusion:
        ldm_core.apply_textual_inversion(changed := copy.deepcopy(model), path)
        return changed

    agree(sd1, lambda s: s.txt2img("a <cat-toy>", **QUICK), monkeypatch, change=taught)


def test_watching_reads_what_it_shows_and_no_more(sd1: LatentDiffusion) -> None:
    """A recorder keeps the latents and the predictions on the CPU; a preview stays on the device."""
    model = copy.deepcopy(sd1).to("gpu")
    recorder, preview = Recorder(model), fit_preview(model, pictures=8)
    with traffic() as counted:
        Sampler(model).txt2img("a cat", on_step=recorder, **{**QUICK, "output": "latent"})
    assert len([entry for entry in counted.readbacks if "watch/" in entry]) == 2 * STEPS
    with traffic() as counted:
        shown: list[Tensor] = []
        Sampler(model).txt2img("a cat", on_step=lambda step: shown.append(preview(step.x0)), **QUICK)
    assert all(image.device.type == "gpu" for image in shown)
    assert not any("watch/" in entry for entry in counted.readbacks)
    assert recorder.strip().size > (0, 0)


def test_merged_tokens(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(sd1).to("gpu")
    with merge_tokens(model, 0.5), watched(monkeypatch) as seen:
        Sampler(model).txt2img("a cat", **QUICK)
    assert seen.within_steps().readbacks == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_16_bit_type(dtype: torch.dtype, sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers' order of computation differs by a few units in the last place of the type."""
    model = copy.deepcopy(sd1).to(dtype=dtype)
    draw: Draw = lambda s: s.txt2img("a cat", **QUICK)  # noqa: E731
    agree(model, draw, monkeypatch, tolerance=8 * torch.finfo(dtype).eps)


def test_loading_to_the_device(tmp_path: Path, sd1: LatentDiffusion) -> None:
    ldm_core.save(sd1, tmp_path / "model.safetensors")
    model = ldm_core.load(tmp_path / "model.safetensors", device="gpu", dtype=torch.float16)
    for module in model.modules.values():
        for parameter in module.parameters():
            assert (parameter.device.type, parameter.dtype) == ("gpu", torch.float16)
            last = parameter.ndim != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
            assert last, "convolutions of 16-bit types are channels-last"
    image = Sampler(model).txt2img("a cat", **QUICK)
    assert image.device.type == "cpu"
    assert image.dtype == torch.float32


def test_parts_of_a_model_by_themselves(sd1: LatentDiffusion) -> None:
    model = copy.deepcopy(sd1).to("gpu")
    latent = model.encode_image(pictures(), [torch.Generator().manual_seed(0)])
    condition = model.condition(["a cat"])
    assert latent.device.type == condition.context.device.type == "gpu"
    expected = sd1.encode_image(pictures(), [torch.Generator().manual_seed(0)])
    assert (host(latent) - expected).abs().max() < TOLERANCE
    assert (host(model.decode_latent(latent)) - sd1.decode_latent(expected)).abs().max() < TOLERANCE
