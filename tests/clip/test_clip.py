"""CLIP against transformers and open_clip, in numbers and in names; zero-shot classification; bad input.

Tolerances are relative: the largest difference over the largest value. In float32 the two sides differ by
the order of their sums: 1e-5, as in `test_parity.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.clip_reference import (
    PROMPTS,
    SMALL,
    SMALL_B32,
    open_clip_model,
    openai_tensors,
    random_clip,
    transformers_clip,
    transformers_halves,
)
from support.contracts import expect_told, told
from support.reference import relative_error

import ldm_core
from ldm_core.clip import CLIP, PRESETS, CLIPConfig, CLIPImageEncoder, preprocess, preset
from ldm_core.clip.initialisation import initialise
from ldm_core.config import ConfigError, TextEncoderConfig
from ldm_core.testing import check_image_encoder
from ldm_core.text_encoder import CLIPTextEncoder

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip(SMALL_B32)


def pixels_for(config: CLIPConfig, batch: int = 2) -> torch.Tensor:
    size = config.image_encoder.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def picture(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)


# --- numbers ---


def check_against_transformers(ours: CLIP) -> None:
    pixels, tokens = pixels_for(ours.config), ours.tokenizer(PROMPTS)
    with torch.no_grad():
        images, texts, logit_scale = ours(pixels, tokens)
        vision, text = transformers_halves(ours)
        assert relative_error(images, vision(pixels).image_embeds) < TOLERANCE
        assert relative_error(texts, text(tokens).text_embeds) < TOLERANCE
        del vision, text
        whole = transformers_clip(ours)(input_ids=tokens, pixel_values=pixels)
        logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        assert relative_error(logits, whole.logits_per_image) < TOLERANCE
        assert relative_error(F.normalize(images, dim=-1), whole.image_embeds) < TOLERANCE


def check_against_open_clip(ours: CLIP) -> None:
    theirs = open_clip_model(ours.config)
    theirs.load_state_dict(openai_tensors(ours), strict=True)
    pixels, tokens = pixels_for(ours.config), ours.tokenizer(PROMPTS)
    with torch.no_grad():
        images, texts, logit_scale = ours(pixels, tokens)
        assert relative_error(images, theirs.encode_image(pixels)) < TOLERANCE
        assert relative_error(texts, theirs.encode_text(tokens)) < TOLERANCE
        assert torch.equal(logit_scale, theirs.logit_scale)


@pytest.mark.parametrize("name", SMALL)
def test_both_encoders_agree_with_transformers(name: str) -> None:
    check_against_transformers(random_clip(SMALL[name]))


@pytest.mark.parametrize("name", SMALL)
def test_both_encoders_agree_with_open_clip(name: str) -> None:
    check_against_open_clip(random_clip(SMALL[name]))


@pytest.mark.slow  # hundreds of millions of weights, three times
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "open_clip/ViT-L-14"])
def test_full_size_networks_agree(name: str) -> None:
    ours = random_clip(PRESETS[name])
    check_against_transformers(ours)
    check_against_open_clip(ours)


def test_the_two_activations_are_told_apart(clip: CLIP) -> None:
    """Weights of one kind in the other network: wrong by far more than rounding, and yet plausible."""
    exact = CLIP(replace(clip.config, image_encoder=replace(clip.config.image_encoder, activation="gelu")))
    exact.load_state_dict(clip.state_dict())
    pixels = pixels_for(clip.config)
    with torch.no_grad():
        error = relative_error(exact.image_encoder(pixels), clip.image_encoder(pixels))
    assert 100 * TOLERANCE < error < 0.5


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_names_and_shapes(name: str) -> None:
    """Every tensor of open_clip's model of these sizes, which are OpenAI's."""
    config = PRESETS[name]
    with torch.device("meta"):
        theirs = open_clip_model(config).state_dict()
        ours = openai_tensors(CLIP(config))
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_presets_have_the_published_counts_of_weights() -> None:
    """As open_clip and the papers give them: 151, 150, 428 and 986 million."""
    counts = {"ViT-B/32": 151_277_313, "ViT-B/16": 149_620_737, "ViT-L/14": 427_616_513}
    counts["open_clip/ViT-H-14"] = 986_109_441
    for name, count in counts.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in CLIP(PRESETS[name]).parameters()) == count


# --- properties ---


def test_attention_backends_agree(clip: CLIP) -> None:
    pixels, tokens = pixels_for(clip.config), clip.tokenizer(PROMPTS)
    before = clip(pixels, tokens)
    ldm_core.set_attention(clip, "math")
    after = clip(pixels, tokens)
    ldm_core.set_attention(clip, "auto")
    assert relative_error(after[0], before[0]) < TOLERANCE
    assert relative_error(after[1], before[1]) < TOLERANCE


def test_a_text_is_read_at_its_end(clip: CLIP) -> None:
    """Neither the padding nor its length matters: causal attention hides it from the end token."""
    tokens = clip.tokenizer(PROMPTS)
    other = torch.where(tokens.cumsum(1) > tokens.cumsum(1).gather(1, tokens.argmax(1, True)), 7, tokens)
    assert not torch.equal(other, tokens)
    expected = clip.encode_text(tokens)
    assert torch.equal(clip.encode_text(other), expected)
    assert relative_error(clip.encode_text(tokens[:, :20]), expected) < TOLERANCE
    changed = tokens.clone()
    changed[:, 0] = 5
    assert relative_error(clip.encode_text(changed), expected) > 1e-3


def test_patches_are_seen_at_their_places(clip: CLIP) -> None:
    """The same patches elsewhere are another picture; a change in any patch reaches the embedding."""
    pixels = pixels_for(clip.config, 1).requires_grad_()
    embedding = clip.image_encoder(pixels)
    rolled = clip.image_encoder(pixels.detach().roll(32, dims=3))
    assert relative_error(rolled, embedding.detach()) > 1e-2
    embedding.square().sum().backward()
    assert pixels.grad is not None
    patches = pixels.grad.unfold(2, 32, 32).unfold(3, 32, 32)  # (1, 3, 7, 7, 32, 32)
    assert (patches.abs().amax((0, 1, 4, 5)) > 0).all()


def test_similarity_is_the_cosine(clip: CLIP) -> None:
    images = [picture(0), picture(1, (60, 60))]
    with torch.no_grad():
        cosines = clip.similarity(images, PROMPTS)
        expected = F.cosine_similarity(
            clip.encode_image(images)[:, None], clip.encode_text(PROMPTS)[None], dim=-1
        )
        norms = clip.encode_image(images, normalize=True).norm(dim=-1)
    assert cosines.shape == (2, 3)
    assert relative_error(cosines, expected) < 1e-6
    assert torch.allclose(norms, torch.ones(2))
    assert torch.equal(clip.similarity(images[0], PROMPTS), clip.similarity([images[0]], PROMPTS))


def test_gradients_reach_a_picture(clip: CLIP) -> None:
    image = torch.rand(1, 3, 50, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clip.similarity(image, "a cat").sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


def test_zero_shot_is_the_papers_formula(clip: CLIP) -> None:
    images, classes = [picture(0), picture(1)], ["cat", "dog", "fire truck"]
    templates = ["a photo of a {}.", "{}", "two {}s, and another {}"]
    probabilities = clip.zero_shot(images, classes, templates)
    vectors = []
    for name in classes:
        prompts = [f"a photo of a {name}.", name, f"two {name}s, and another {name}"]
        mean = F.normalize(clip.encode_text(prompts).double(), dim=-1).mean(0)
        vectors.append(mean / mean.norm())
    cosines = F.normalize(clip.encode_image(images).double(), dim=-1) @ torch.stack(vectors).T
    expected = (clip.logit_scale.double().exp() * cosines).softmax(-1)
    assert probabilities.shape == (2, 3)
    assert torch.allclose(probabilities.double(), expected, rtol=1e-4)
    assert torch.allclose(probabilities.sum(-1), torch.ones(2))
    alone = clip.zero_shot(images, classes, templates[:1])
    assert torch.equal(alone, clip.zero_shot(images, classes))


def test_zero_shot_finds_what_was_taught() -> None:
    """A few steps of the loss on three plain colours, and the classifier names them."""
    from ldm_core.training.contrastive import clamp_log_scale_, contrastive_loss

    image = replace(SMALL_B32.image_encoder, image_size=32, patch_size=16, width=32, layers=1, heads=2)
    model = CLIP(replace(SMALL_B32, image_encoder=image), torch.Generator().manual_seed(0))
    names = ["red", "green", "blue"]
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    pixels, tokens = preprocess(colours, image), model.tokenizer(names)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        contrastive_loss(*model(pixels, tokens)).backward()
        optimizer.step()
        clamp_log_scale_(model.logit_scale)
    assert model.zero_shot(colours, names, ["{}"]).argmax(-1).tolist() == [0, 1, 2]
    assert model.zero_shot(colours, names, ["{}"]).diagonal().min() > 0.8


def test_weights_begin_as_the_generator_says() -> None:
    """The same draw for the same seed, whatever the global state; sizes as in OpenAI's code."""
    first = CLIP(SMALL_B32, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    second = CLIP(SMALL_B32, torch.Generator().manual_seed(3))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    text, block = first.text_encoder, first.text_encoder.blocks[1]
    for weight, deviation in (
        (text.token_embedding.weight, 0.02),
        (block.fc1.weight, (2 * 48) ** -0.5),
        (block.fc2.weight, 48**-0.5 * 4**-0.5),
        (first.image_encoder.blocks[0].attn.to_q.weight, 64**-0.5),
    ):
        assert abs(float(weight.detach().std()) / deviation - 1) < 0.05
    assert float(first.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    with pytest.raises(
        ValueError, match="with a projection to CLIP's joint space; its projection_dim is None"
    ):
        initialise(
            first.image_encoder, CLIPTextEncoder(TextEncoderConfig(48, 77, 48, 1, 3)), torch.Generator()
        )


# --- what is not a CLIP, a picture or a text ---


def test_configurations_that_do_not_fit() -> None:
    image, text = SMALL_B32.image_encoder, SMALL_B32.text_encoder
    with pytest.raises(
        ConfigError, match=r"same projection_dim of both encoders, got 40 for images and 41 for texts"
    ):
        CLIPConfig(image, replace(text, projection_dim=41))
    with pytest.raises(ConfigError, match="got 40 for images and None for texts"):
        CLIPConfig(image, replace(text, projection_dim=None))
    with pytest.raises(ConfigError, match="clip_skip=0, not 1"):
        CLIPConfig(image, replace(text, clip_skip=1))
    for change, words in (
        ({"heads": 5}, "width 64 is not divisible by 5 heads"),
        ({"patch_size": 30}, "image_size must be a multiple of patch_size 30, not 224"),
        ({"activation": "relu"}, "must be 'quick_gelu' or 'gelu', not 'relu'"),
        ({"layers": 0}, "layers must be an int in 1..256, not 0"),
        ({"std": (1.0, 1.0, 0.0)}, "std must be positive"),
    ):
        with pytest.raises(ConfigError, match=words):
            replace(image, **change)
    with pytest.raises(ConfigError, match="unknown CLIP configuration 'ViT-B-32'; expected one of"):
        preset("ViT-B-32")
    assert CLIPConfig.from_dict(json.loads(json.dumps(SMALL_B32.to_dict()))) == SMALL_B32
    for damaged in ({}, {"image_encoder": {"width": 3}}, {"image_encoder": {"wide": 3}, "text_encoder": {}}):
        with pytest.raises(ConfigError, match="invalid CLIP configuration"):
            CLIPConfig.from_dict(damaged)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (3, "expected a prompt or a sequence of prompts, got int"),
        ([1, 2], "prompt 0 is 1"),
        ([], r"got \(0, 77\)"),
        (torch.zeros(2, 77), r"got \(2, 77\) of torch.float32"),
        (torch.zeros(77, dtype=torch.long), r"got \(77,\)"),
        (torch.full((1, 77), 49408), r"token ids in 0..49407, .* got 49408 to 49408"),
        (torch.full((1, 3), -1), "got -1 to -1"),
        (torch.zeros(1, 78, dtype=torch.long), "N <= 77"),
    ],
)
def test_bad_texts(clip: CLIP, texts: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clip.encode_text(texts)


def test_bad_classes_templates_and_pixels(clip: CLIP) -> None:
    for classes, templates, words in (
        ([], ["{}"], "expected classes as a non-empty list of strings"),
        ("cat", ["{}"], "expected classes as a non-empty list"),
        (["cat", 3], ["{}"], "expected classes"),
        (["cat"], [], "expected templates"),
        (["cat"], ["a photo"], "expected a template with {} for the class's name, got 'a photo'"),
    ):
        with pytest.raises(ValueError, match=words):
            clip.zero_shot(picture(), classes, templates)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected pixels of \(B, 3, 224, 224\), got \(1, 3, 64, 64\)"):
        clip.image_encoder(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="with a projection to CLIP's joint space"):
        CLIPTextEncoder(TextEncoderConfig(48, 77, 48, 1, 3)).embed(torch.zeros(1, 3, dtype=torch.long))


def test_a_users_image_encoder_takes_the_place_of_ours(clip: CLIP) -> None:
    class Mine(torch.nn.Module):
        def __init__(self, inner: CLIPImageEncoder) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return -self.inner(pixels)

    mine = random_clip(SMALL_B32)
    mine.image_encoder = Mine(mine.image_encoder)
    assert torch.allclose(mine.similarity(picture(), "a cat"), -clip.similarity(picture(), "a cat"))


class Changed(torch.nn.Module):
    """A small image encoder of which one thing is changed."""

    CONFIG = replace(SMALL_B32.image_encoder, image_size=32, patch_size=8, width=32, layers=1)

    def __init__(self, change: Callable[[CLIPImageEncoder, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.encoder = CLIPImageEncoder(self.CONFIG)
        self.change = change

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.change(self.encoder, pixels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, x: e(x)[:, :-1], ("shape and dtype", "(3, 40)", "(3, 39)")),
        (lambda e, x: e(x - x.mean(0)), ("batch independence", "row 0")),
        (lambda e, x: e(x * 0), ("dependence", "the pixels")),
        (lambda e, x: e(F.pad(x[:, :, :24, :24], (0, 8, 0, 8))), ("every patch", "the last patch")),
        (lambda e, x: e(x.mul_(1.5)), ("purity", "pixels")),
    ],
)
def test_a_broken_image_encoder_is_told(change: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_image_encoder, Changed(change), Changed.CONFIG), words)


def test_ours_keeps_the_contract() -> None:
    check_image_encoder(Changed(lambda e, x: e(x)), Changed.CONFIG)
    with pytest.raises(ValueError, match="expected an ImageEncoderConfig, not TextEncoderConfig"):
        check_image_encoder(Changed(lambda e, x: e(x)), SMALL_B32.text_encoder)  # type: ignore[arg-type]
