"""Requests that cannot be fulfilled are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import SMALL
from support.reference import random_model
from support.sampler_inputs import counting

from ldm_core import Sampler
from ldm_core.model import LatentDiffusion

BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 3}, "prompt must be a string or a non-empty list of strings, not 3"),
    ({"prompt": []}, "non-empty list"),
    ({"prompt": ["a", None]}, "prompt 1 must be a string, not NoneType"),
    ({"prompt": ["a", "b"], "negative_prompt": ["x", "y", "z"]}, "1 or 2 negative prompt"),
    ({"negative_prompt": ["x", "y"]}, r"expected 1 negative prompt\(s\) for 1 prompt\(s\), got 2"),
    (
        {"height": 100, "width": 200},
        "height must be a positive multiple of 64 pixels, not 100; nearest: 64 or 128",
    ),
    ({"width": 7}, "width must be a positive multiple of 64 pixels, not 7; nearest: 64"),
    ({"width": 64.0}, "width must be"),
    ({"height": 0}, "height must be"),
    ({"steps": 0}, "1.*1000"),
    ({"steps": 1001}, "1.*1000"),
    ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, not nan"),
    ({"guidance_scale": "7"}, "guidance_scale must be a finite number, not '7'"),
    ({"num_images": 0}, "num_images must be a positive int"),
    ({"seed": -1}, "seed"),
    ({"seed": "x"}, "seed must be an int"),
    ({"seed": [1, 2]}, r"one seed per image \(1\), got 2"),
    ({"noise": torch.zeros(1, 16, 4, 4)}, r"expected noise of \(1, 16, 8, 8\), got \(1, 16, 4, 4\)"),
    ({"output": "jpeg"}, "output must be 'pil', 'tensor' or 'latent'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_requests_are_refused_before_anything_is_computed(
    bundled: LatentDiffusion, options: dict[str, Any], message: str
) -> None:
    model, rows = counting(bundled)
    with pytest.raises(ValueError, match=message):
        Sampler(model).txt2img(**{"prompt": "fire", **options})
    assert rows == []


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_outside_its_range(bundled: LatentDiffusion, picture: Image.Image, strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        Sampler(bundled).img2img("fire", picture, strength)


def test_bad_images_and_masks(bundled: LatentDiffusion, picture: Image.Image) -> None:
    sampler = Sampler(bundled)
    with pytest.raises(ValueError, match="the mask has 64×128 pixels, the image 128×128"):
        sampler.inpaint("fire", picture, Image.new("L", (64, 128)))
    with pytest.raises(
        ValueError, match="height must be a positive multiple of 64 pixels, not 130; nearest: 128 or 192"
    ):
        sampler.img2img("fire", picture.resize((128, 130)))
    with pytest.raises(ValueError, match="expected the image as a PIL image or a tensor, not str"):
        sampler.img2img("fire", "picture.png")
    with pytest.raises(ValueError, match="one image or one per prompt"):
        sampler.img2img(["a", "b"], [picture] * 3)
    with pytest.raises(ValueError, match="a mask needs the image"):
        list(sampler.steps("fire", mask=picture))
    with pytest.raises(ValueError, match=r"strength 0\.5 needs an image"):
        list(sampler.steps("fire", strength=0.5))
    with pytest.raises(ValueError, match=r"the image fixes the size of 128×128 pixels, .* height=64"):
        sampler.sample("fire", image=picture, height=64)


def test_a_model_whose_task_is_another(picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="this U-Net takes 5 channels"):
        Sampler(random_model(SMALL["sd2-depth"])).txt2img("fire", steps=1)
    with pytest.raises(ValueError, match="also takes class labels"):
        Sampler(random_model(SMALL["sd2-unclip"])).txt2img("fire", steps=1)
    with pytest.raises(ValueError, match="batch_size must be positive"):
        Sampler(random_model(SMALL["sd1"]), batch_size=0)
