"""The maps of words: which words there are, and what their weights give."""

from __future__ import annotations

import math

import pytest
import torch

import ldm_core
from ldm_core.bert.tokenizer import BERTTokenizer
from ldm_core.tokenizer import CLIPTokenizer
from ldm_core.watch import WordMaps, overlay, record_attention


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "words"),
    [
        (CLIPTokenizer(), "Red  apple, unbelievableness", ["red", "apple", ",", "unbelievableness"]),
        (CLIPTokenizer(), "", []),
        (CLIPTokenizer(context_length=4), "one two three", ["one", "two"]),
        (
            CLIPTokenizer(added_words=(("<toy>", (49408, 49409)),)),
            "a <toy> car",
            ["a", "<toy>", "<toy>_1", "car"],
        ),
        (BERTTokenizer(), "unbelievableness, red", ["unbelievableness", ",", "red"]),
    ],
)
def test_words_are_put_together_from_their_tokens(tokenizer: object, prompt: str, words: list[str]) -> None:
    assert WordMaps(tokenizer, prompt).names == words


def test_a_map_shows_where_a_word_weighs_more_than_the_others() -> None:
    words = WordMaps(CLIPTokenizer(), "red apple")
    weights = torch.full((2, 3, 4, 77), 0.01)
    weights[0] = torch.rand(3, 4, 77)  # of the negative prompt: not counted
    weights[1, :, 2, 1] = 0.08  # "red" at the third of 2×2 places
    maps = {"a": [weights, weights], "b": [torch.rand(1, 3, 16, 77)]}
    words.collect(maps)
    assert maps == {"a": [], "b": []}
    heat = words.heat((4, 4))
    assert heat.shape == (2, 2, 2)
    assert torch.allclose(heat[0], torch.tensor([[0.0, 0.0], [1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(heat[1], -heat[0])
    relative = words.relative((4, 4))
    half = math.log(8) / 2  # above the geometric mean of two tokens
    assert torch.allclose(relative[0], torch.tensor([[0.0, 0.0], [half, 0.0]]), atol=1e-6)
    with pytest.raises(ValueError, match=r"no attention to words was recorded for latents of \(5, 7\)"):
        words.heat((5, 7))


def test_a_models_steps_are_collected_one_by_one(bundled: ldm_core.LatentDiffusion) -> None:
    prompt, options = "red apple", {"steps": 2, "guidance_scale": 4, "seed": 0}
    words = WordMaps(bundled.tokenizer, prompt)
    with record_attention(bundled.unet, where="attn2") as maps:
        for _ in ldm_core.Sampler(bundled).steps(prompt, **options):
            words.collect(maps)
            assert not any(maps.values())
    heat = words.heat((8, 8))
    with record_attention(bundled.unet, where="attn2") as maps:
        list(ldm_core.Sampler(bundled).steps(prompt, **options))
    logs = [w[-1, :, :, 1:3].log() for calls in maps.values() for w in calls if w.shape[2] == 16]
    relative = torch.stack([(x - x.mean(-1, keepdim=True)).mean(0) for x in logs]).mean(0).T
    expected = relative.reshape(2, 4, 4) / relative.abs().max()
    assert torch.allclose(heat, expected, atol=1e-5)


def test_an_overlay_is_red_where_the_word_acts_and_blue_where_it_does_not() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3] = 1, -1
    picture = overlay(torch.full((3, 16, 16), 0.5), heat)
    assert picture[0, 0, 0] > picture[2, 0, 0]
    assert picture[0, 15, 15] < picture[2, 15, 15]
