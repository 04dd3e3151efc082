"""unCLIP's vectors against the formula in float64 and against diffusers' normaliser and scheduler."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image
from support.texts import text_conditioner
from support.tiny_clip import tiny_clip
from torch import Tensor

from ldm_core.clip import preprocess_stretched
from ldm_core.conditioners import Unclip, UnclipConfig
from ldm_core.noise import generators, randn

TEXT = text_conditioner()
D = 16
DRAWN = torch.Generator().manual_seed(0)
VECTORS = torch.randn(3, D, generator=DRAWN)
MEAN, STD = torch.randn(D, generator=DRAWN), torch.rand(D, generator=DRAWN) + 0.5
CLOSE = 1e-5


def alpha_cumprod(level: int) -> float:
    def a(s: float) -> float:
        return math.cos(math.pi / 2 * (s + 0.008) / 1.008) ** 2

    product = 1.0
    for i in range(level + 1):
        product *= 1 - min(1 - a((i + 1) / 1000) / a(i / 1000), 0.999)
    return product


def reference(vector: Tensor, level: int, noise: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    a = alpha_cumprod(level)
    z = (vector.double() - mean) / std * math.sqrt(a) + math.sqrt(1 - a) * noise.double()
    angles = [level * 10000 ** (-i / (D // 2)) for i in range(D // 2)]
    emb = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
    return torch.cat([z * std + mean, torch.tensor(emb, dtype=torch.float64)])


@pytest.fixture(scope="module")
def conditioner() -> Unclip:
    encoder = tiny_clip().image_encoder.requires_grad_(False)
    return Unclip(TEXT, encoder, UnclipConfig(D), MEAN, STD)


@pytest.mark.parametrize("level", [0, 1, 500, 999])
def test_the_vector_is_noised_and_the_level_follows(conditioner: Unclip, level: int) -> None:
    inputs = [{"prompt": "a", "embedding": vector, "noise_level": level} for vector in VECTORS[:2]]
    condition = conditioner(inputs, generators([7, 8]))
    assert condition.vector is not None
    assert condition.vector.shape == (2, 2 * D)
    noise = randn((2, D), generators([7, 8]))
    for found, vector, drawn in zip(condition.vector, VECTORS, noise):
        expected = reference(vector, level, drawn, MEAN.double(), STD.double())
        assert float((found - expected).abs().max()) < CLOSE * float(expected.abs().max())
        assert not torch.allclose(found[:D], vector, atol=1e-4), "level 0 has noise, too"
    assert torch.equal(condition.context, TEXT(["a", "a"]).context)
    assert condition.concat is None


def test_several_images_of_one_input(conditioner: Unclip) -> None:
    """Each has noise of its own, and is the image that is drawn alone."""
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1))
    inputs = [{"prompt": "a", "image": picture}, {"embeddings": VECTORS, "mixture_noise_level": 3}]
    several = conditioner(inputs, generators([1, 2, 3, 4]))
    for k, row in enumerate([inputs[0], inputs[0], inputs[1], inputs[1]]):
        alone, found = conditioner(row, generators([k + 1])), several[[k]]
        assert torch.equal(found.vector, alone.vector)
        assert torch.equal(found.context, alone.context)


@pytest.mark.parametrize("level", [0, 300])
def test_diffusers_gives_the_same(level: int) -> None:
    normalizer = StableUnCLIPImageNormalizer(D)
    normalizer.mean.data, normalizer.std.data = MEAN[None], STD[None]
    pipeline: Any = SimpleNamespace(
        image_normalizer=SimpleNamespace(
            to=lambda device: None, scale=normalizer.scale, unscale=normalizer.unscale
        ),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    noise = randn((3, D), generators([1, 2, 3]))
    with torch.no_grad():
        theirs = StableUnCLIPImg2ImgPipeline.noise_image_embeddings(pipeline, VECTORS, level, noise)
    ours = Unclip(TEXT, None, UnclipConfig(D), MEAN, STD).noised(VECTORS, level, generators([1, 2, 3]))
    assert float((ours - theirs).abs().max()) < CLOSE * float(theirs.abs().max())


def test_pictures_are_encoded_as_the_repositories_do(conditioner: Unclip) -> None:
    assert conditioner.image_encoder is not None
    picture = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(1))
    pixels = preprocess_stretched(picture, conditioner.image_encoder.config, antialias=True)
    vector = conditioner.image_encoder(pixels)
    expected = conditioner({"embedding": vector}, generators([4])).vector
    assert torch.equal(conditioner({"image": picture}, generators([4])).vector, expected)
    assert torch.equal(conditioner(picture[None], generators([4])).vector, expected)
    assert conditioner.modules == {"conditioner": conditioner.network}
    assert conditioner.network.image_encoder is conditioner.image_encoder
    both = {"images": [picture, Image.new("RGB", (9, 9))], "weights": [1, 0]}
    weighted = conditioner(both, generators([4])).vector
    assert weighted.shape == (1, 2 * D)
    noise = randn((2, D), generators([4])[0])[0]
    close = reference(vector[0], 0, noise, MEAN.double(), STD.double())
    assert float((weighted[0] - close).abs().max()) < CLOSE * float(close.abs().max())


def test_mixtures(conditioner: Unclip) -> None:
    weights = [1.0, 0.5, 2.0]
    row = {"embeddings": VECTORS, "weights": weights, "noise_level": 30}
    mean, std = MEAN.double(), STD.double()
    generator = generators([9])[0]
    noise, again = randn((3, D), generator), randn((1, D), generator)
    parts = [reference(v, 30, n, mean, std) for v, n in zip(VECTORS, noise)]
    expected = sum(w * part for w, part in zip(weights, parts)) / sum(weights)
    found = conditioner(row, generators([9])).vector
    assert float((found[0] - expected).abs().max()) < CLOSE * float(expected.abs().max())
    expected = reference(expected[:D], 50, again[0], mean, std)
    found = conditioner({**row, "mixture_noise_level": 50}, generators([9])).vector
    assert float((found[0] - expected).abs().max()) < CLOSE * float(expected.abs().max())
    equal = conditioner({"embeddings": list(VECTORS)}, generators([9])).vector
    same = conditioner({"embeddings": VECTORS, "weights": torch.full((3,), 4.0)}, generators([9])).vector
    torch.testing.assert_close(equal, same)


def test_prompts_alone_have_a_vector_of_zeros(conditioner: Unclip) -> None:
    assert (conditioner.unconditional, conditioner.guidance_scale) == ("", 10.0)
    assert conditioner.draws_noise
    condition = conditioner(["a", "b"])
    assert torch.equal(condition.vector, torch.zeros(2, 2 * D))
    assert torch.equal(condition.context, TEXT(["a", "b"]).context)
    assert conditioner.count(["a", "b"]) == 2
    assert torch.equal(Unclip(TEXT, None, UnclipConfig(D))("").vector, torch.zeros(1, 2 * D))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "as a prompt, or as a mapping with prompt, image, images, embedding"),
        (
            {"prompt": "a"},
            "pic: expected one of image, images, embedding, embeddings, text, … .* got none of them",
        ),
        ({"image": 1, "embedding": 2}, "got image, embedding"),
        ({"image": "cat.png"}, "pic: image: expected the image as a PIL image or a tensor, not str"),
        ({"images": []}, "pic: images: expected"),
        ({"image": torch.zeros(2, 3, 9, 9)}, "expected one image, got 2; images are mixed"),
        ({"embedding": VECTORS}, "expected one embedding, got 3; embeddings are mixed"),
        (
            {"embedding": torch.zeros(D + 1)},
            rf"vectors of {D} numbers, \({D},\) or \(n, {D}\), got \({D + 1},\)",
        ),
        ({"embedding": VECTORS[0] * torch.nan}, "expected finite numbers"),
        ({"embedding": torch.zeros(D, dtype=torch.long)}, "got torch.int64"),
        ({"embeddings": []}, "got list"),
        ({"embedding": VECTORS[0], "noise_level": 1000}, r"noise_level must be an int in 0\.\.999, not 1000"),
        ({"embedding": VECTORS[0], "mixture_noise_level": -1}, "mixture_noise_level must be an int"),
        ({"embeddings": VECTORS, "weights": [1, 2]}, r"expected 3 weights of 0 or more.*got \[1, 2\]"),
        ({"embeddings": VECTORS, "weights": [0, 0, 0]}, "positive sum"),
        ({"embeddings": VECTORS, "weights": [1, -1, 3]}, "0 or more"),
        ({"embeddings": VECTORS, "weights": [1, math.inf, 3]}, "0 or more"),
        ({"embeddings": VECTORS, "weights": "abc"}, "0 or more"),
    ],
)
def test_what_is_refused(conditioner: Unclip, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditioner.count(inputs, "pic")
    with pytest.raises(ValueError):
        conditioner(inputs)


def test_bad_parts() -> None:
    with pytest.raises(ValueError, match="there is no image encoder; expected embeddings"):
        Unclip(TEXT, None, UnclipConfig(D))(Image.new("RGB", (8, 8)))
    for mean, std, words in (
        (MEAN[:4], 1.0, "mean: expected vectors of 16"),
        (VECTORS, 1.0, "expected mean as one vector, got 3"),
        (0.0, STD * 0, "std to be positive"),
        (0.0, -1, "std to be positive"),
        ("0", 1.0, "mean: expected vectors of 16"),
        (math.nan, 1.0, "mean: expected vectors of 16"),
    ):
        with pytest.raises(ValueError, match=words):
            Unclip(TEXT, None, UnclipConfig(D), mean, std)
    with pytest.raises(ValueError, match="unclip: width must be an int"):
        UnclipConfig(0)
    with pytest.raises(ValueError, match="width must be even"):
        UnclipConfig(1023)
