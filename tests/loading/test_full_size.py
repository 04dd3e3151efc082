"""SD1 and SD2 at their published size, with random weights: parity, loading, and pictures of 512×512.

These need about 12 GB of memory and 10 GB of disk, hence `slow`.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.reference import (
    computed_alike,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
    relative_error,
)
from torch import Tensor

from ldm_core.model import LatentDiffusion

pytestmark = pytest.mark.slow

FLOAT32 = 1e-5  # the largest difference over the largest value; see test_parity.py


def test_unet_of_sd1_agrees_with_diffusers(full_sd1: LatentDiffusion) -> None:
    reference = reference_unet(full_sd1)
    x, t, context = torch.randn(1, 4, 64, 64), torch.tensor([501]), torch.randn(1, 77, 768)
    with torch.no_grad():
        assert relative_error(full_sd1.unet(x, t, context), reference(x, t, context).sample) < FLOAT32


def test_autoencoder_of_sd1_agrees_with_diffusers(full_sd1: LatentDiffusion) -> None:
    """Of pictures of 256×256, with sums in the same order; the next test has the faster order."""
    reference = reference_autoencoder(full_sd1)
    images, z = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)
    with torch.no_grad(), computed_alike(full_sd1):
        ours, theirs = full_sd1.autoencoder.encode(images), reference.encode(images).latent_dist
        assert relative_error(ours.mean, theirs.mean) < FLOAT32
        assert relative_error(ours.std, theirs.std) < FLOAT32
        assert relative_error(full_sd1.autoencoder.decode(z), reference.decode(z).sample) < FLOAT32


def test_autoencoder_of_sd1_is_near_to_float64_as_diffusers_is(full_sd1: LatentDiffusion) -> None:
    """Each side's root mean square error against the same weights in float64, for pictures of 256×256."""
    reference = reference_autoencoder(full_sd1)
    exact = copy.deepcopy(full_sd1.autoencoder).double()
    images, z = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)

    def error(result: Tensor, expected: Tensor) -> float:
        return float((result - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    with torch.no_grad():
        decoded, encoded = exact.decode(z.double()), exact.encode(images.double()).mean
        ours = (
            error(full_sd1.autoencoder.decode(z), decoded),
            error(full_sd1.autoencoder.encode(images).mean, encoded),
        )
        theirs = (
            error(reference.decode(z).sample, decoded),
            error(reference.encode(images).latent_dist.mean, encoded),
        )
    print(f"decoder {ours[0]:.1e}, diffusers' {theirs[0]:.1e}; encoder {ours[1]:.1e}, {theirs[1]:.1e}")
    # Winograd's algorithm has 5e-6 to 6e-6 everywhere; PyTorch's own convolutions 6.6e-6 with AVX2's
    # instructions, and 1.4e-6 with AVX-512's.
    assert ours[0] < max(1.25 * theirs[0], 1.6e-5)
    assert ours[1] < max(1.25 * theirs[1], 1.6e-5)


def test_text_encoder_of_sd1_agrees_with_transformers(full_sd1: LatentDiffusion) -> None:
    reference = reference_text_encoder(full_sd1)
    tokens = full_sd1.tokenizer(["a photograph of an astronaut riding a horse", ""])
    with torch.no_grad():
        assert relative_error(full_sd1.text_encoder(tokens), reference(tokens).last_hidden_state) < FLOAT32


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


def test_sd1_draws_512_by_512(sd1_files: dict[str, Path], tmp_path: Path) -> None:
    """A file of exactly SD1's 1,131 tensors, with no word on what it is, from the prompt to the picture."""
    assert drawn(sd1_files["safetensors"], "float32", tmp_path / "out.pt").std() > 0


def test_sd1_in_bfloat16_draws_the_same_picture(sd1_files: dict[str, Path], tmp_path: Path) -> None:
    """At 256×256: without instructions for it, bfloat16 takes many times as long as float32."""
    exact, rounded = (
        drawn(sd1_files["safetensors"], dtype, tmp_path / f"{dtype}.pt", "256")
        for dtype in ("float32", "bfloat16")
    )
    # Random weights amplify rounding, but the two must still be the same picture.
    assert (exact - rounded).abs().mean() < 0.05
