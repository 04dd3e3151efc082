"""SD1 and SD2 at their published size, with random weights: parity, loading, and pictures of 512×512.

These need about 12 GB of memory and 10 GB of disk, hence `slow`.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.reference import (
    computed_alike,
    random_model,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
    relative_error,
    settings_folder,
)
from support.timed_loading import forget, measure
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import inspect, read, save
from ldm_core.checkpoint.writer import Pending, write_safetensors
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import PRESETS, SD1
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

pytestmark = pytest.mark.slow

FLOAT32 = 1e-5  # the largest difference over the largest value; see test_parity.py


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sd1() -> LatentDiffusion:
    return random_model(SD1)


@pytest.fixture(scope="module")
def files(sd1: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """SD1's 1,131 tensors and nothing else, as .safetensors and as .ckpt: 4.3 GB each, removed at the end."""
    folder = tmp_path_factory.mktemp("sd1")
    paths = {"safetensors": folder / "sd1.safetensors", "ckpt": folder / "sd1.ckpt"}
    tensors = file_tensors(sd1)
    assert len(tensors) == 1131
    save_file(tensors, paths["safetensors"])
    torch.save({"state_dict": tensors}, paths["ckpt"])
    yield paths
    for path in paths.values():
        path.unlink()


def test_unet_of_sd1_agrees_with_diffusers(sd1: LatentDiffusion) -> None:
    reference = reference_unet(sd1)
    x, t, context = torch.randn(1, 4, 64, 64), torch.tensor([501]), torch.randn(1, 77, 768)
    with torch.no_grad():
        assert relative_error(sd1.unet(x, t, context), reference(x, t, context).sample) < FLOAT32


def test_autoencoder_of_sd1_agrees_with_diffusers(sd1: LatentDiffusion) -> None:
    """With sums in the same order; how the faster order fares is told by the next test."""
    reference = reference_autoencoder(sd1)
    images, z = torch.rand(1, 3, 512, 512) * 2 - 1, torch.randn(1, 4, 64, 64)
    with torch.no_grad(), computed_alike(sd1):
        ours, theirs = sd1.autoencoder.encode(images), reference.encode(images).latent_dist
        assert relative_error(ours.mean, theirs.mean) < FLOAT32
        assert relative_error(ours.std, theirs.std) < FLOAT32
        assert relative_error(sd1.autoencoder.decode(z), reference.decode(z).sample) < FLOAT32


def test_autoencoder_of_sd1_is_near_to_float64_as_diffusers_is(sd1: LatentDiffusion) -> None:
    """Each side's root mean square error against the same weights in float64, for pictures of 256×256."""
    reference = reference_autoencoder(sd1)
    exact = copy.deepcopy(sd1.autoencoder).double()
    images, z = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)

    def error(result: Tensor, expected: Tensor) -> float:
        return float((result - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    with torch.no_grad():
        decoded, encoded = exact.decode(z.double()), exact.encode(images.double()).mean
        ours = error(sd1.autoencoder.decode(z), decoded), error(sd1.autoencoder.encode(images).mean, encoded)
        theirs = (
            error(reference.decode(z).sample, decoded),
            error(reference.encode(images).latent_dist.mean, encoded),
        )
    print(f"decoder {ours[0]:.1e}, diffusers' {theirs[0]:.1e}; encoder {ours[1]:.1e}, {theirs[1]:.1e}")
    # Winograd's algorithm has 5e-6 to 6e-6 everywhere; PyTorch's own convolutions 6.6e-6 with AVX2's
    # instructions, and 1.4e-6 with AVX-512's.
    assert ours[0] < max(1.25 * theirs[0], 1.6e-5)
    assert ours[1] < max(1.25 * theirs[1], 1.6e-5)


def test_text_encoder_of_sd1_agrees_with_transformers(sd1: LatentDiffusion) -> None:
    reference = reference_text_encoder(sd1)
    tokens = sd1.tokenizer(["a photograph of an astronaut riding a horse", ""])
    with torch.no_grad():
        assert relative_error(sd1.text_encoder(tokens), reference(tokens).last_hidden_state) < FLOAT32


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_loading_4_gb_takes_the_memory_and_time_of_the_file(files: dict[str, Path], ending: str) -> None:
    """Peak at most 1.15 × the file; time, with every weight read, at most 1.5 × the plain readers'.

    From the disk. From a warm page cache 4.3 GB are touched in a fifth of a second, and making 900 modules
    and checking a thousand headers takes as long again: the ratio is printed, and is below 2.5.
    """
    path = files[ending]
    size = path.stat().st_size
    assert size > 4.2e9
    ratios, memory = {}, 0.0
    for cache, bound in (("cold", 1.5), ("warm", 2.5)):
        plain, ours = [], []
        for attempt in range(4):  # alternating; more than twice only where other work disturbed
            if attempt >= 2 and min(ours) <= bound * min(plain):
                break
            for how, times in (("plain", plain), ("ldm_core", ours)):
                if cache == "cold":
                    forget(path)
                run = measure(path, how)
                times.append(run["loaded"] if how == "ldm_core" else run["seconds"])
                memory = max(memory, run["peak"] / size) if how == "ldm_core" else memory
        ratios[cache] = min(ours) / min(plain)
    print(f"{ending}: peak {memory:.3f} × the file; time {ratios['cold']:.2f} × reading it from the disk,")
    print(f"    {ratios['warm']:.2f} × from a warm page cache")
    assert memory <= 1.15
    assert ratios["cold"] <= 1.5
    assert ratios["warm"] <= 2.5


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_loading_is_as_fast_as_diffusers_single_file_loader(
    files: dict[str, Path], ending: str, tmp_path: Path
) -> None:
    """The same file, alternating, until every weight has been read; and at most 1.15 × its size in memory.

    On a chip with AVX-512 diffusers takes 0.6 s. There the check that every value is finite, which it lacks,
    costs 0.2 s, and the ratio is 1.1. On one with AVX2 it was 0.6.
    """
    path = files[ending]
    folder = settings_folder(SD1, tmp_path / "settings")
    runs: dict[str, list[dict[str, float]]] = {"ldm_core": [], "diffusers": []}
    ours, theirs = float("inf"), 0.0
    while (ours > 1.1 * theirs and len(runs["ldm_core"]) < 5) or len(runs["ldm_core"]) < 2:
        for how, measured in runs.items():
            measured.append(measure(path, how, folder))
        ours, theirs = (min(run["seconds"] for run in measured) for measured in runs.values())
    memory = [max(run["peak"] for run in measured) / path.stat().st_size for measured in runs.values()]
    print(f"{ending}: {ours / theirs:.2f} × diffusers' time, until every weight has been read;")
    print(f"    peak {memory[0]:.2f} × the file, diffusers' {memory[1]:.2f}")
    assert ours <= 1.5 * theirs
    assert memory[0] <= 1.15


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_the_doctor_needs_two_seconds(files: dict[str, Path], ending: str) -> None:
    start = time.perf_counter()
    report = inspect(files[ending])
    seconds = time.perf_counter() - start
    assert report.presets == ("sd1",)
    assert seconds < 2
    print(f"{ending}: {seconds:.2f} s")


PUBLISHED = {
    "sd1": "stable-diffusion/v1-inference",
    "sd2-base": "stable-diffusion-2/v2-inference",
    "sd2-v": "stable-diffusion-2/v2-inference-v",
    "sd2-inpaint": "stable-diffusion-2/v2-inpainting-inference",
    "sd2-depth": "stable-diffusion-2/v2-midas-inference",
    "sd2-unclip-h": "stable-diffusion-2/v2-1-stable-unclip-h-inference",
    "sd2-unclip-l": "stable-diffusion-2/v2-1-stable-unclip-l-inference",
    "x4-upscaler": "stable-diffusion-2/x4-upscaling",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_list_of_tensors_comes_back_equal(
    name: str, published: dict[str, Any], tmp_path: Path
) -> None:
    """Load, save, load: the same keys and bits, at full size, of one byte a number to be quick."""
    pool = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
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
            assert torch.equal(value.view(torch.uint8), theirs[key].view(torch.uint8)), key
    before, after = read(first).tensors, read(second).tensors
    made = [key for key in listed if key.endswith(("position_ids", "attn_mask"))]
    assert len(made) == 1
    for key in before.keys() - set(made):
        assert torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)), key
    first.unlink()
    second.unlink()


def pooled(pool: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers from one pool, from another place in it for each tensor, since drawing billions is slow."""
    count, start = math.prod(shape), (number * 7919) % 2**20
    repeats = -(-count // (len(pool) - start))
    return pool[start:].repeat(repeats)[:count].reshape(shape)


DRAW = """
import sys, torch, ldm_core
model = ldm_core.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
assert model.config == ldm_core.config.SD1
size = {"height": int(sys.argv[4]), "width": int(sys.argv[4])} if len(sys.argv) > 4 else {}
image = ldm_core.Sampler(model).txt2img("a photograph of an astronaut riding a horse", steps=1, seed=0,
                                        output="tensor", **size)
assert image.shape == (1, 3, size.get("height", 512), size.get("width", 512)), image.shape
assert image.isfinite().all()
torch.save(image, sys.argv[3])
"""


def drawn(path: Path, dtype: str, out: Path, *size: str) -> Tensor:
    """A picture of one step, made by a process of its own."""
    subprocess.run([sys.executable, "-c", DRAW, str(path), dtype, str(out), *size], check=True)
    picture: Tensor = torch.load(out, weights_only=True)
    return picture


def test_sd1_draws_512_by_512(files: dict[str, Path], tmp_path: Path) -> None:
    """A file of exactly SD1's 1,131 tensors, with no word on what it is, from the prompt to the picture."""
    assert drawn(files["safetensors"], "float32", tmp_path / "out.pt").std() > 0


def test_sd1_in_bfloat16_draws_the_same_picture(files: dict[str, Path], tmp_path: Path) -> None:
    """At 256×256: without instructions for it, bfloat16 takes many times as long as float32."""
    exact, rounded = (
        drawn(files["safetensors"], dtype, tmp_path / f"{dtype}.pt", "256")
        for dtype in ("float32", "bfloat16")
    )
    # Random weights amplify rounding, but the two must still be the same picture.
    assert (exact - rounded).abs().mean() < 0.05
