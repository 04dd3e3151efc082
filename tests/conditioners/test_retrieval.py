"""Retrieval-augmented diffusion's tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_clip import tiny_clip
from torch import Tensor

from ldm_core.clip import preprocess_stretched
from ldm_core.conditioners import Retrieval, RetrievalConfig, Retriever

WIDTH = 16
CONFIG = RetrievalConfig(WIDTH)
TOKENS = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0)) * 5
ROWS = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture(scope="module")
def conditioner() -> Retrieval:
    return Retrieval(tiny_clip().requires_grad_(False), Retriever(ROWS), 4, CONFIG)


def lengths(tokens: Tensor | None) -> Tensor:
    assert tokens is not None
    return tokens.norm(dim=-1)


def test_embeddings_are_divided_by_their_lengths() -> None:
    alone = Retrieval(config=CONFIG)
    condition = alone(TOKENS)
    for b in range(2):
        for k in range(3):
            norm = sum(float(value) ** 2 for value in TOKENS[b, k]) ** 0.5
            assert float((condition.context[b, k] - TOKENS[b, k] / norm).abs().max()) < 1e-6
    assert condition.vector is condition.concat is None
    assert alone.count(TOKENS) == 2
    assert (alone.unconditional, alone.guidance_scale, alone.modules) == (None, 5.0, {})


def test_texts_come_first_and_their_neighbours_follow(conditioner: Retrieval) -> None:
    assert conditioner.clip is not None
    texts = ["a cat", "a dog"]
    condition = conditioner(texts)
    assert condition.context is not None
    assert condition.context.shape == (2, 5, WIDTH)
    torch.testing.assert_close(lengths(condition.context), torch.ones(2, 5))
    query = conditioner.clip.encode_text(texts)
    for token, row, found in zip(query, condition.context[:, 0], condition.context):
        torch.testing.assert_close(row, token / token.norm())
        cosines = [float(token @ other / token.norm() / other.norm()) for other in ROWS]
        order = sorted(range(20), key=lambda i: -cosines[i])[:4]
        torch.testing.assert_close(found[1:], ROWS[order] / ROWS[order].norm(dim=-1, keepdim=True))
    assert torch.equal(conditioner("a cat").context, conditioner(texts[:1]).context)
    assert conditioner.count(texts) == 2


def test_pictures_have_the_repositories_preprocessing(conditioner: Retrieval) -> None:
    assert conditioner.clip is not None
    image = Image.effect_noise((40, 25), 80).convert("RGB")
    pixels = preprocess_stretched(image, conditioner.clip.config.image_encoder, antialias=False)
    vector = conditioner.clip.image_encoder(pixels)[0]
    context = conditioner([image, image]).context
    assert context is not None
    torch.testing.assert_close(context[1, 0], vector / vector.norm())
    assert context.shape == (2, 5, WIDTH)
    assert conditioner.count([image] * 3) == 3
    assert conditioner.count(torch.rand(2, 3, 8, 8)) == 2


def test_without_neighbours_the_text_stands_alone(conditioner: Retrieval) -> None:
    for alone in (
        Retrieval(conditioner.clip, config=CONFIG),
        Retrieval(conditioner.clip, Retriever(ROWS), 0, CONFIG),
    ):
        assert alone("a cat").context.shape == (1, 1, WIDTH)


def test_the_unconditional_context_is_zero(conditioner: Retrieval) -> None:
    condition = conditioner(TOKENS)
    unconditional = conditioner.unconditional_for(condition)
    assert torch.equal(unconditional.context, torch.zeros(2, 3, WIDTH))
    assert unconditional.vector is unconditional.concat is None


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (TOKENS[..., :8], r"embeddings in a floating-point tensor \(B, n, 16\), got \(2, 3, 8\)"),
        (TOKENS[:, :0], r"got \(2, 0, 16\)"),
        (TOKENS.long(), "of torch.int64"),
        (TOKENS * 0, "lengths above 0"),
        (TOKENS * torch.nan, "lengths above 0"),
        (TOKENS[0], "rows: expected embeddings, texts or pictures: expected an image"),
        (None, "texts or pictures: .* not NoneType"),
        ([], "texts or pictures: "),
        (["a", 3], "rows 1 must be a string, not int"),
    ],
)
def test_what_is_refused(conditioner: Retrieval, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditioner.count(inputs, "rows")
    with pytest.raises(ValueError):
        conditioner(inputs)


def test_parts_that_do_not_fit(conditioner: Retrieval) -> None:
    for inputs in ("a cat", Image.new("RGB", (8, 8))):
        for call in (Retrieval(config=CONFIG), Retrieval(config=CONFIG).count):
            with pytest.raises(ValueError, match=r"\(B, n, 16\); texts and pictures need a clip"):
                call(inputs)
    with pytest.raises(ValueError, match="a CLIP with embeddings of 768 numbers, got 16"):
        Retrieval(conditioner.clip)
    with pytest.raises(ValueError, match="a retriever of embeddings of 768 numbers, got 16"):
        Retrieval(retriever=Retriever(ROWS))
    with pytest.raises(ValueError, match=r"neighbours must be an int in 0\.\.20.* not 21"):
        Retrieval(conditioner.clip, Retriever(ROWS), 21, CONFIG)
    with pytest.raises(ValueError, match="retrieval: width must be an int"):
        RetrievalConfig(0)
