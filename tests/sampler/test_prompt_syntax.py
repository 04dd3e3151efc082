"""Prompts with weights, chunks, changes and alternatives, from the text to the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.random_models import random_model
from torch import Tensor

from ldm_core import DDIM, LatentDiffusion, Sampler
from ldm_core.conditioners.a1111 import A1111, chunks_of, emphasised
from ldm_core.conditioners.compel_prompts import combined
from ldm_core.conditioners.prompt_encoder import Chunk, PromptEncoder
from ldm_core.guidance import AdaptiveProjectedGuidance
from ldm_core.prompts import compel
from ldm_core.request import Request
from ldm_core.start import prepare

SYNTAXES = ["a1111", "a1111-no-norm", "compel"]
QUICK = {"steps": 4, "guidance_scale": 5.0, "seed": 3, "output": "latent"}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return random_model(TINY["sd1"])


@pytest.fixture
def encoder(model: LatentDiffusion) -> PromptEncoder:
    return PromptEncoder(model.conditioner)


def draw(model: LatentDiffusion, prompt: Any, syntax: str | None = "a1111", **options: Any) -> Tensor:
    return Sampler(model, prompts=syntax).txt2img(prompt, **QUICK | options)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


# Plain prompts


@pytest.mark.one_in(5)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_prompts_without_syntax_give_the_plain_images_to_the_bit(model: LatentDiffusion, syntax: str) -> None:
    options = {"negative_prompt": "a dog, ugly", "num_images": 2}
    prompts = ["a cat: black and white, 4k", "well-known"]
    assert torch.equal(draw(model, prompts, syntax, **options), draw(model, prompts, None, **options))


def test_syntax_is_off_by_default(model: LatentDiffusion) -> None:
    prompt = "a (cat:1.5) AND [dog|bird]"
    assert torch.equal(Sampler(model).txt2img(prompt, **QUICK), draw(model, prompt, None))
    assert not close(draw(model, prompt), draw(model, prompt, None))


def test_a_picture_records_the_syntax(model: LatentDiffusion) -> None:
    options = QUICK | {"steps": 1, "output": "pil"}
    [picture] = Sampler(model, prompts="a1111-no-norm").txt2img("a (cat)", **options)
    assert picture.info["recipe"]["prompts"] == "A1111(keep_mean=False)"
    [picture] = Sampler(model).txt2img("a (cat)", **options)
    assert "prompts" not in picture.info["recipe"]


# Chunks


def tokens(text: str, encoder: PromptEncoder) -> list[tuple[int, ...]]:
    return [chunk.ids for chunk in chunks_of(encoder, text)]


def test_chunks_of_75_tokens(encoder: PromptEncoder) -> None:
    (cat,) = encoder.ids("cat")
    assert tokens("", encoder) == [()]
    assert tokens("cat " * 75, encoder) == [(cat,) * 75]
    assert tokens("cat " * 76, encoder) == [(cat,) * 75, (cat,)]
    assert tokens("cat " * 200, encoder) == [(cat,) * 75, (cat,) * 75, (cat,) * 50]


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (60, 30, 61),  # the comma and what precedes it
        (55, 30, 56),  # 20 tokens back
        (54, 30, 75),  # 21 tokens back
        (74, 30, 75),  # the comma is the last token
        (75, 30, 75),  # the comma begins the next chunk, and moves nothing
        (30, 10, 41),
    ],
)
def test_what_follows_the_last_comma_moves_to_the_next_chunk(
    encoder: PromptEncoder, before: int, after: int, first: int
) -> None:
    found = tokens("cat " * before + ", " + "dog " * after, encoder)
    assert len(found[0]) == first
    assert sum(map(len, found)) == before + after + 1


def test_break_ends_a_chunk(encoder: PromptEncoder) -> None:
    (cat,), (dog,) = encoder.ids("cat"), encoder.ids("dog")
    assert tokens("cat BREAK dog", encoder) == [(cat,), (dog,)]
    assert tokens("BREAK cat BREAK BREAK dog BREAK", encoder) == [(), (cat,), (), (dog,)]
    assert tokens("(cat BREAK dog:1.2)", encoder) == [(cat,), (dog,)]


def test_chunks_are_encoded_on_their_own(model: LatentDiffusion, encoder: PromptEncoder) -> None:
    """A long prompt's context is that of its parts, one after the other, and of empty ones."""
    context = torch.cat([model.condition([text]).context for text in ("a cat", "", "a dog")], dim=1)
    negative = torch.cat([model.condition([text]).context for text in ("", "", "")], dim=1)
    expected = Sampler(model).txt2img(context=context, negative_context=negative, **QUICK)
    assert close(draw(model, "a cat BREAK BREAK a dog"), expected)


# Weights


@pytest.mark.parametrize("keep_mean", [True, False])
def test_weights_multiply_the_context(model: LatentDiffusion, keep_mean: bool) -> None:
    plain = model.condition(["a cat on a mat"]).context
    factors = torch.ones(77)
    factors[[2, 5]] = torch.tensor([1.5, 0.5])  # after the start token
    weighted = plain * factors[:, None]
    if keep_mean:
        weighted = weighted * plain.mean() / weighted.mean()
    expected = Sampler(model).txt2img(context=weighted, negative_prompt="", **QUICK)
    found = draw(model, "a (cat:1.5) on a (mat:.5)", "a1111" if keep_mean else "a1111-no-norm")
    assert close(found, expected)
    assert not close(found, draw(model, "a cat on a mat"))


def test_the_mean_is_that_of_all_contexts_together() -> None:
    plain = torch.rand(3, 5, 4) + 1
    weights = torch.ones(3, 5, 1)
    assert emphasised(plain, weights) is plain
    weights[1, 2] = 3.0
    found = emphasised(plain, weights, torch.ones(3))
    torch.testing.assert_close(found.mean(), plain.mean())
    twice = emphasised(plain[:2], weights[:2], torch.tensor([1.0, 2.0]))
    rows = [0, 1, 1]
    torch.testing.assert_close(twice[rows], emphasised(plain[rows], weights[rows], torch.ones(3)))
    torch.testing.assert_close(found[0] / plain[0], found[2] / plain[2])
    assert torch.equal(emphasised(plain, weights), plain * weights)


# Changes during the run


def test_a_prompt_that_changes_is_each_text_in_its_steps(model: LatentDiffusion) -> None:
    whole = draw(model, "a [cat:dog:2]")
    sampler, options = Sampler(model), QUICK | {"output": "latent"}
    pairs = sampler.scheduler.timesteps(model.noise_schedule, 4)
    half = sampler.txt2img("a cat", **options, timesteps=pairs[:2])
    assert close(whole, sampler.txt2img("a dog", **options, timesteps=pairs[2:], latent=half))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("prompt", "same_as"),
    [
        ("a [cat:dog:4]", "a cat"),
        ("a [cat:dog:0]", "a dog"),
        ("a [cat:dog:0.5]", "a [cat:dog:2]"),
        ("a [cat|dog]", "a [[cat:dog:1]:[cat:dog:3]:2]"),
        ("a [cat|cat]", "a cat"),
    ],
)
def test_schedules_that_are_equal(model: LatentDiffusion, prompt: str, same_as: str) -> None:
    assert close(draw(model, prompt), draw(model, same_as))


def test_texts_that_come_back_share_their_contexts(model: LatentDiffusion) -> None:
    """Otherwise 1,000 steps of SD1 need 0.5 GB."""
    request = Request(inputs="a [cat|dog|(red:1.2) bird]", steps=1000)
    phases = prepare(model, DDIM(), request, syntax=A1111()).phases
    assert len(phases) == 1000
    assert len({id(phase.cond.context) for phase in phases}) == 3
    assert len({id(phase.uncond.context) for phase in phases}) == 1


def test_negative_prompts_change_too(model: LatentDiffusion) -> None:
    found = draw(model, "x", negative_prompt="a [cat:dog:9]")
    assert close(found, draw(model, "x", negative_prompt="a cat"))
    assert not close(found, draw(model, "x", negative_prompt="a [cat:dog:2]"))


# Alternatives


def test_alternatives_are_a_weighted_sum(model: LatentDiffusion) -> None:
    plain = draw(model, "a cat")
    assert close(draw(model, "a cat AND a cat :0"), plain)
    assert close(draw(model, "a cat :0.25 AND a cat :0.75"), plain)
    assert close(draw(model, "a cat :2"), draw(model, "a cat", guidance_scale=10.0))
    assert not close(draw(model, "a cat AND a dog"), plain)


def test_prompts_of_a_batch_do_not_change_each_other(model: LatentDiffusion) -> None:
    prompts = ["a (cat:1.4)", "a [cat|dog] AND fog :0.5", "plain"]
    options = {"negative_prompt": ["", "(ugly:1.2)", "x"], "num_images": 2}
    together = draw(model, prompts, **options)
    for k, prompt in enumerate(prompts):
        own = {"negative_prompt": options["negative_prompt"][k], "seed": QUICK["seed"] + 2 * k}
        alone = draw(model, prompt, **options | own)
        assert close(together[2 * k : 2 * k + 2], alone)


def test_alternatives_need_classifier_free_guidance(model: LatentDiffusion) -> None:
    sampler = Sampler(model, guidance=AdaptiveProjectedGuidance(), prompts="a1111")
    sampler.txt2img("a (cat:1.2)", **QUICK | {"steps": 1})
    with pytest.raises(ValueError, match="require ClassifierFreeGuidance, not AdaptiveProjectedGuidance"):
        sampler.txt2img("a AND b", **QUICK)


# Compel


def context_of(encoder: PromptEncoder, text: str) -> Tensor:
    return combined(encoder, compel(text))


def test_compel_moves_tokens_away_from_the_empty_one(model: LatentDiffusion, encoder: PromptEncoder) -> None:
    plain, empty = (model.condition([text]).context[0] for text in ("a cat", ""))
    expected = plain.clone()
    expected[2] = empty[2] + 1.5 * (plain[2] - empty[2])
    torch.testing.assert_close(context_of(encoder, "a (cat)1.5"), expected)


def test_compel_mixes_in_the_prompt_without_a_piece(encoder: PromptEncoder) -> None:
    half, gone = (combined(encoder, compel(f"a (cat){w}"), "remove") for w in (0.5, 0))
    without = context_of(encoder, "a")
    tokens = [(token, 1.0) for token in encoder.ids("a")] + [(token, 0.5) for token in encoder.ids("cat")]
    chunk = Chunk(tuple(t for t, _ in tokens), tuple(w for _, w in tokens))
    plain, empty = encoder.hidden([chunk])[0], encoder.hidden([Chunk()])[0]
    moved = empty + encoder.weights([chunk], plain)[0] * (plain - empty)
    torch.testing.assert_close(half, (moved + without) / 2)
    torch.testing.assert_close(gone, without, atol=1e-3, rtol=1e-3)


def test_compel_combines_contexts(encoder: PromptEncoder) -> None:
    a, b, empty = (context_of(encoder, text) for text in ("a cat", "dog", ""))
    torch.testing.assert_close(context_of(encoder, '("a cat", "dog").blend(3, 1)'), 0.75 * a + 0.25 * b)
    blend = context_of(encoder, '("a cat", "dog").blend(3, 1, no_normalize)')
    torch.testing.assert_close(blend, 3 * a + b)
    both = context_of(encoder, '("a cat", "dog").and(1, 0.5)')
    torch.testing.assert_close(both, torch.cat([a, empty + 0.5 * (b - empty)]))


def test_compel_draws(model: LatentDiffusion) -> None:
    plain = draw(model, "a cat", None)
    for prompt in ("a cat+", '("a cat", "dog").blend(1, 1)', '("a cat", "dog").and()'):
        found = draw(model, prompt, "compel")
        assert found.shape == plain.shape
        assert not close(found, plain)


def test_pieces_of_low_weight_have_a_limit(encoder: PromptEncoder) -> None:
    with pytest.raises(ValueError, match="at most 100 pieces of weight below 1, not 101"):
        context_of(encoder, "a- b " * 101)


# What does not work


def test_an_unknown_syntax(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"prompts must be one of a1111, .*, compel-remove, not 'invoke'"):
        Sampler(model, prompts="invoke")


def test_a_tokenizer_of_another_kind(model: LatentDiffusion) -> None:
    other = LatentDiffusion(
        **{
            name: getattr(model, name)
            for name in ("config", "unet", "autoencoder", "text_encoder", "noise_schedule")
        },
        tokenizer=lambda prompts: model.tokenizer(prompts),
    )
    with pytest.raises(ValueError, match="needs a tokenizer like CLIP's, but function has no encode"):
        Sampler(other, prompts="a1111").txt2img("a (cat)", **QUICK)


@pytest.mark.parametrize("prompt", ["(" * 101, "a" * 40_000, f"(a:{'9' * 400})"])
def test_prompts_beyond_the_limits(model: LatentDiffusion, prompt: str) -> None:
    with pytest.raises(ValueError, match=r"a prompt m|the weight of 'a' must be a finite number"):
        draw(model, prompt)
