"""unCLIP's operations in CLIP's space, in the conditioner, and in the calls of `ldm_core.UnCLIP`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.priors import WIDTH, small_clip, small_prior
from support.small_models import small_config, small_model
from support.texts import text_conditioner
from torch import Tensor

import ldm_core
from ldm_core.clip import preprocess_stretched
from ldm_core.conditioners import TextConditioner, Unclip, UnclipConfig
from ldm_core.conditioners.image_space import difference, slerp, spherical_mean, turned
from ldm_core.noise import generators

A, B, C = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)) + 1
CLOSE = 1e-5
PICTURE = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1))


def angle(a: Tensor, b: Tensor) -> float:
    return math.acos(float(torch.cosine_similarity(a.double(), b.double(), dim=0).clamp(-1, 1)))


@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0, 1))
def test_slerp_turns_at_a_steady_rate(seed: int, width: int, amount: float) -> None:
    a, b = torch.randn(2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    between = slerp(a, b, amount)
    assert math.isclose(angle(a, between), amount * angle(a, b), abs_tol=1e-6)
    assert math.isclose(angle(between, b), (1 - amount) * angle(a, b), abs_tol=1e-6)
    assert math.isclose(float(between.norm()), float((1 - amount) * a.norm() + amount * b.norm()))
    assert torch.allclose(between, slerp(b, a, 1 - amount))
    mean = spherical_mean(torch.stack([a, b]), torch.tensor([1 - amount, amount]))
    assert angle(a, b) > 3 or torch.allclose(mean, between, atol=1e-6)


def test_the_mean_does_not_depend_on_the_order_and_has_the_least_angles() -> None:
    vectors, weights = torch.stack([A, B, C]).double(), torch.tensor([1.0, 2.0, 3.0])

    def cost(point: Tensor) -> float:
        return sum(float(w) * angle(point, v) ** 2 for w, v in zip(weights, vectors))

    mean = spherical_mean(vectors, weights)
    order = [2, 0, 1]
    assert torch.allclose(spherical_mean(vectors[order], weights[order]), mean)
    assert torch.allclose(spherical_mean(vectors, 5 * weights), mean)
    assert torch.allclose(spherical_mean(vectors, torch.tensor([0.0, 1.0, 0.0])), vectors[1])
    assert math.isclose(float(mean.norm()), float((weights @ vectors.norm(dim=1).float()) / 6), rel_tol=1e-6)
    for k in range(20):
        step = torch.randn(WIDTH, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        assert cost(mean + 0.01 * step) > cost(mean)


def test_ends_and_what_has_no_answer() -> None:
    assert torch.equal(slerp(A, B, 0), A)
    assert torch.allclose(slerp(A, B, 1), B)
    assert torch.allclose(slerp(A, 2 * A, 0.5), 1.5 * A)
    for bad in (lambda: slerp(A, -A, 0.5), lambda: spherical_mean(torch.stack([A, -A]), torch.ones(2))):
        with pytest.raises(ValueError, match=r"opposite|cancel"):
            bad()
    with pytest.raises(ValueError, match="finite embeddings with lengths above 0"):
        slerp(A, 0 * A, 0.5)
    with pytest.raises(ValueError, match="the same embedding"):
        difference(A, 2 * A)
    changed = turned(A, difference(B, C), 0.3)
    assert torch.allclose(changed.norm(), A.norm())
    assert math.isclose(angle(A, changed), 0.3 * angle(A, difference(B, C)), abs_tol=1e-6)


@pytest.fixture(scope="module")
def conditioner() -> Unclip:
    encoder = small_clip().image_encoder
    return Unclip(text_conditioner(), encoder, UnclipConfig(WIDTH), prior=small_prior(steps=3))


def vector_of(conditioner: Unclip, inputs: Any, seed: int = 7) -> Tensor:
    vector = conditioner(inputs, generators([seed])).vector
    assert vector is not None
    return vector[0]


def expected(conditioner: Unclip, embedding: Tensor, generator: torch.Generator) -> Tensor:
    return conditioner.noised(embedding[None], 0, generator)[0]


def test_a_text_goes_through_the_prior(conditioner: Unclip) -> None:
    """The prior draws first, then the noise of the embedding."""
    prior, (draw,) = conditioner.prior, generators([7])
    assert prior is not None
    embedding = prior("a cat", generator=[draw])
    assert torch.equal(vector_of(conditioner, {"text": "a cat"}), expected(conditioner, embedding[0], draw))
    rows = [{"text": "a cat", "prompt": "x"}, {"text": "dog"}]
    several = conditioner(rows, generators([7, 8, 9, 10]))
    for k, row in enumerate([rows[0], rows[0], rows[1], rows[1]]):
        alone = vector_of(conditioner, row, 7 + k)
        assert float((several.vector[k] - alone).abs().max()) < CLOSE * float(alone.abs().max())
    assert torch.equal(several.context, text_conditioner()(["x", "x", "", ""]).context)


def test_mixtures_on_the_sphere(conditioner: Unclip) -> None:
    assert conditioner.prior is not None
    assert conditioner.image_encoder is not None
    seen = conditioner.image_encoder(
        preprocess_stretched(PICTURE, conditioner.image_encoder.config, antialias=True)
    )[0]
    (draw,) = generators([7])
    text = conditioner.prior("a cat", generator=[draw])[0]
    mixed = spherical_mean(torch.stack([seen, text, A]), torch.tensor([0.5, 0.3, 0.2]))
    found = vector_of(conditioner, {"mix": [(PICTURE, 0.5), ("a cat", 0.3), (A, 0.2)]})
    assert torch.allclose(found, expected(conditioner, mixed, draw), atol=1e-5)
    (draw,) = generators([7])
    assert torch.equal(vector_of(conditioner, {"mix": [(A, 1)]}), vector_of(conditioner, {"embedding": A}))
    middle = vector_of(conditioner, {"mix": [(A, 2), (B, 2)], "noise_level": 0})
    assert torch.allclose(middle, expected(conditioner, slerp(A, B, 0.5), draw), atol=1e-5)


def test_changes_towards_a_text(conditioner: Unclip) -> None:
    assert conditioner.prior is not None
    winter, summer = conditioner.prior.embed_text(["winter", "summer"])
    (draw,) = generators([7])
    inputs = {"embedding": A, "towards": "winter", "away": "summer", "amount": 0.4}
    changed = turned(A, difference(winter, summer), 0.4)
    assert torch.allclose(vector_of(conditioner, inputs), expected(conditioner, changed, draw), atol=1e-5)
    still = vector_of(conditioner, {**inputs, "amount": 0.0})
    assert torch.equal(still, vector_of(conditioner, {"embedding": A}))
    usual = vector_of(conditioner, {"embedding": A, "towards": "winter"})
    named = vector_of(conditioner, {"embedding": A, "towards": "winter", "away": "", "amount": 0.3})
    assert torch.equal(usual, named)


def test_the_prompts_own_encoder_serves_for_differences(conditioner: Unclip) -> None:
    clip = small_clip()
    own = Unclip(TextConditioner(clip.tokenizer, clip.text_encoder), None, UnclipConfig(WIDTH))
    inputs = {"embedding": A, "towards": "winter", "away": "summer"}
    assert torch.allclose(vector_of(own, inputs), vector_of(conditioner, inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"text": 3}, "pic: text: expected a text, got int"),
        ({"text": "a", "image": PICTURE}, "expected one of .* got image, text"),
        ({"mix": []}, r"pic: mix: expected a list of pairs"),
        ({"mix": [PICTURE]}, "expected a list of pairs"),
        ({"mix": [(PICTURE, 1, 2)]}, "expected a list of pairs"),
        ({"mix": [(3, 1)]}, "pic: mix: image 0: expected the image as a PIL image or a tensor"),
        ({"mix": [(A[1:], 1)]}, r"pic: mix: embedding 0: expected vectors of 16 numbers"),
        ({"mix": [(torch.rand(2, 3, 8, 8), 1)]}, "pic: mix: expected one image in pair 0, got 2"),
        ({"mix": [(A, -1), (B, 2)]}, "expected 2 weights of 0 or more"),
        ({"mix": [(A, 1)], "weights": [1]}, "its pairs have the weights"),
        ({"embedding": A, "amount": 0.3}, "expected the text towards which to change, with amount"),
        ({"embedding": A, "towards": 3}, "towards must be a text, not int"),
        ({"embedding": A, "towards": "a", "away": 3}, "away must be a text, not int"),
        ({"embedding": A, "towards": "a", "amount": 1.5}, r"amount must be a number in \[0, 1\], not 1.5"),
        ({"embedding": A, "towards": "a", "away": "a"}, "towards and away are the same text"),
    ],
)
def test_what_is_refused(conditioner: Unclip, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditioner.count(inputs, "pic")


def test_without_a_prior() -> None:
    bare = Unclip(text_conditioner(), None, UnclipConfig(WIDTH))
    for inputs in ({"text": "a"}, {"mix": [("a", 1)]}):
        with pytest.raises(ValueError, match="there is no prior, which draws embeddings for texts"):
            bare.count(inputs)
    with pytest.raises(ValueError, match="needs a prior, or the text encoder of the embeddings' CLIP"):
        bare.count({"embedding": A, "towards": "a"})
    with pytest.raises(ValueError, match="expected a prior of embeddings of 8 numbers, got 16"):
        Unclip(text_conditioner(), None, UnclipConfig(8), prior=small_prior())


@pytest.fixture(scope="module")
def unclip() -> ldm_core.UnCLIP:
    model = small_model("unclip")
    encoder = small_clip().image_encoder
    model = replace(model, conditioner=replace(model.conditioner, image_encoder=encoder))
    return ldm_core.UnCLIP(ldm_core.Sampler(model), small_prior(steps=3))


def test_every_call_is_a_sample(unclip: ldm_core.UnCLIP) -> None:
    options: dict[str, Any] = {"steps": 1, "seed": 3, "output": "latent"}
    sampler = unclip.sampler
    texts = unclip.txt2img(["a cat", "dog"], **options)
    rows = [{"text": "a cat", "prompt": "a cat"}, {"text": "dog", "prompt": "dog"}]
    assert torch.equal(texts, sampler.sample(rows, **options))
    assert not torch.equal(texts, unclip.txt2img(["a cat", "dog"], read=False, **options))
    drawn = unclip.variations(PICTURE, num_images=2, noise_level=9, **options)
    assert torch.equal(drawn, sampler.sample({"image": PICTURE, "noise_level": 9}, num_images=2, **options))
    assert not torch.equal(drawn[0], drawn[1])
    assert len(unclip.variations([PICTURE, Image.new("RGB", (9, 9))], **options)) == 2
    pairs = [(PICTURE, 0.5), ("a cat", 0.5)]
    mixed = unclip.mix(pairs, prompt="p", **options)
    assert torch.equal(mixed, sampler.sample({"mix": pairs, "prompt": "p"}, **options))
    change = {"towards": "winter", "away": "summer", "amount": 0.3}
    changed = unclip.change(PICTURE, "winter", "summer", **options)
    assert torch.equal(changed, sampler.sample({"image": PICTURE, **change}, **options))
    changed = unclip.change("a cat", "winter", "summer", **options)
    assert torch.equal(changed, sampler.sample({"text": "a cat", **change}, **options))


def test_the_prior_moves_with_the_model_and_is_not_saved(unclip: ldm_core.UnCLIP, tmp_path: Any) -> None:
    model, prior = unclip.sampler.model, unclip.prior
    assert prior is not None
    assert next(model.modules["prior"].parameters()) is next(prior.network.parameters())
    ldm_core.save(model, tmp_path / "model.safetensors")
    loaded = ldm_core.load(tmp_path / "model.safetensors")
    assert "prior" not in loaded.modules
    options: dict[str, Any] = {"steps": 1, "seed": 1, "output": "latent"}
    again = ldm_core.UnCLIP(ldm_core.Sampler(loaded), prior)
    assert torch.equal(again.txt2img("a cat", **options), unclip.txt2img("a cat", **options))
    picture = again.txt2img("a cat", steps=1, seed=1)[0]
    assert picture.info["recipe"]["text"] == "a cat"


def test_bad_parts() -> None:
    with pytest.raises(ValueError, match=r"a Sampler of an unCLIP model.*got the conditioner TextCond"):
        ldm_core.UnCLIP(ldm_core.Sampler(ldm_core.build(small_config("sd1"))), small_prior())
    with pytest.raises(ValueError, match="got the conditioner NoneType"):
        ldm_core.UnCLIP(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no prior"):
        ldm_core.UnCLIP(ldm_core.Sampler(small_model("unclip"))).txt2img("a", steps=1)
