"""A word that learns: nothing else changes, and its file gives the same pictures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.configs import TINY
from support.reference import random_model, reference_text_encoder, transformers_tokenizer
from support.training_runs import losses, pictures, run
from torch import Tensor

import ldm_core
from ldm_core.adapters.textual_inversion import apply_textual_inversion
from ldm_core.model import LatentDiffusion
from ldm_core.training import CaptionedDataset, DiffusionObjective, TrainableEmbedding, fill_templates
from ldm_core.training.textual_inversion import PHOTOS, STYLES

WORD = "<my-dog>"
FEW = {"steps": 4, "batch_size": 2, "save_every": 2, "warmup": 0, "learning_rate": 0.05}


@pytest.fixture
def model() -> LatentDiffusion:
    return random_model(TINY["sd1"])


def learn(folder: Path, model: LatentDiffusion, *, vectors: int = 2, **options: Any) -> TrainableEmbedding:
    word = TrainableEmbedding(model, WORD, "dog", vectors=vectors)
    objective = DiffusionObjective(model, adapter=word, condition_dropout=0.0)
    samples = CaptionedDataset(pictures(6, 16), fill_templates(PHOTOS, WORD))
    run(folder, objective, samples=samples, **FEW | options)
    return word


def drawn(model: LatentDiffusion, prompt: str = f"a photo of {WORD}") -> Tensor:
    options: dict[str, Any] = {"height": 16, "width": 16, "output": "tensor"}
    return ldm_core.Sampler(model).txt2img(prompt, steps=2, seed=0, guidance_scale=2.0, **options)


def test_it_begins_as_the_word_that_it_is_told(model: LatentDiffusion) -> None:
    """In the same place of the same sentence, the encoder cannot tell the two apart."""
    word = TrainableEmbedding(model, WORD, "dog")
    (token,) = model.tokenizer.encode("dog")  # type: ignore[attr-defined]
    assert torch.equal(word.vectors[0], model.text_encoder.token_embedding.weight[token])  # type: ignore[attr-defined]
    contexts = [model.text_encoder(model.tokenizer([f"a {name} in a garden"])) for name in (WORD, "dog")]
    assert torch.equal(*contexts)
    word.remove()


def test_vectors_begin_as_the_initial_words_tokens_in_turn(model: LatentDiffusion) -> None:
    table = model.text_encoder.token_embedding.weight  # type: ignore[attr-defined]
    tokens = model.tokenizer.encode("polar bear")  # type: ignore[attr-defined]
    assert len(tokens) == 2
    word = TrainableEmbedding(model, WORD, "polar bear", vectors=3)
    assert torch.equal(word.vectors, table[[tokens[0], tokens[1], tokens[0]]])
    other = TrainableEmbedding(model, "<other>", WORD, vectors=3)  # a learned word is a word, too
    assert torch.equal(other.vectors, word.vectors)
    assert other.vectors is not word.vectors


def test_the_gradient_is_that_of_a_row_of_the_whole_table(model: LatentDiffusion) -> None:
    """transformers' encoder with the table learning, and the word's own row in it."""
    word = TrainableEmbedding(model, WORD, "dog")
    theirs = reference_text_encoder(random_model(TINY["sd1"]))
    tokenizer = transformers_tokenizer()
    prompt = "a photo of a {} on a table"
    target = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(0))

    ours = model.text_encoder(model.tokenizer(prompt.format(WORD)))
    (ours - target).square().mean().backward()
    table = theirs.get_input_embeddings().weight.requires_grad_(True)
    ids = tokenizer(prompt.format("dog"), padding="max_length", return_tensors="pt").input_ids
    (theirs(ids).last_hidden_state - target).square().mean().backward()
    (dog,) = model.tokenizer.encode("dog")  # type: ignore[attr-defined]
    assert word.vectors.grad is not None
    torch.testing.assert_close(word.vectors.grad[0], table.grad[dog], rtol=1e-4, atol=1e-8)


def test_nothing_else_changes(tmp_path: Path, model: LatentDiffusion) -> None:
    """All rows of the table, and all other weights, to the bit; and what is drawn without the word."""
    before = copy.deepcopy({part: module.state_dict() for part, module in model.modules.items()})
    plain = drawn(model, "a photo of a dog")
    word = learn(tmp_path, model)
    (dog,) = model.tokenizer.encode("dog")  # type: ignore[attr-defined]
    start = before["text_encoder"]["token_embedding.weight"][dog]
    assert all(float((vector.detach() - start).abs().max()) > 0.01 for vector in word.vectors)
    for part, module in model.modules.items():
        assert all(torch.equal(x, before[part][name]) for name, x in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert torch.equal(drawn(model, "a photo of a dog"), plain)
    assert not torch.equal(drawn(model), plain)
    word.remove()
    word.remove()
    assert torch.equal(drawn(model, "a photo of a dog"), plain)
    assert model.tokenizer.added_words == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_its_file_gives_the_same_pictures(tmp_path: Path, model: LatentDiffusion, names: Any) -> None:
    word = learn(tmp_path / "run", model)
    live = drawn(model)
    path = tmp_path / "my-dog.safetensors"
    word.save(path, names=names)
    (key,) = load_file(path)
    assert key == {"diffusers": WORD, "kohya": "emb_params"}[names]

    fresh = random_model(TINY["sd1"])
    applied = apply_textual_inversion(fresh, path, name=None if names == "diffusers" else WORD)
    assert applied.name == WORD
    assert torch.equal(applied.vectors, word.vectors)
    assert torch.equal(drawn(fresh), live)


def test_a_run_that_has_ended_is_there_for_another_word(tmp_path: Path) -> None:
    """The vectors are the state, so a run that was ended gives them back without a step."""
    learned = learn(tmp_path, random_model(TINY["sd1"]))
    again = learn(tmp_path, random_model(TINY["sd1"]))
    assert torch.equal(again.vectors, learned.vectors)
    assert len(losses(tmp_path)) == 4


def test_templates() -> None:
    assert fill_templates(("a {} photo", "{} and {}"), "x y") == ("a x y photo", "x y and x y")
    assert fill_templates(("{a} {}",), "b") == ("{a} b",)
    assert all("{}" in text for text in PHOTOS + STYLES)
    with pytest.raises(ValueError, match=r"expected \{\} in each template, got 'a photo'"):
        fill_templates(("a {}", "a photo"), "x")


@pytest.mark.parametrize(
    ("name", "initial", "vectors", "message"),
    [
        ("", "dog", 1, "name is words"),
        (" ", "dog", 1, "name is words"),
        ("<known>", "dog", 1, "already in use"),
        ("<KNOWN>", "dog", 1, "already in use"),
        (WORD, "", 1, "the initial word '' has no tokens"),
        (WORD, "polar bear", 1, "'polar bear' has 2 tokens: use vectors=2 or more"),
        (WORD, "dog", 0, "vectors must be an integer of 1 or more, not 0"),
        (WORD, "dog", 1.5, "vectors must be"),
    ],
)
def test_bad_words_are_refused_and_leave_the_model_alone(
    model: LatentDiffusion, name: str, initial: str, vectors: Any, message: str
) -> None:
    TrainableEmbedding(model, "<known>", "cat")
    words = model.tokenizer.added_words  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        TrainableEmbedding(model, name, initial, vectors)
    assert model.tokenizer.added_words == words  # type: ignore[attr-defined]
    assert len(model.text_encoder.token_embedding._forward_hooks) == 1  # type: ignore[attr-defined]


def test_a_tokenizer_without_words_of_its_own_is_refused(model: LatentDiffusion) -> None:
    tokenizer = model.tokenizer
    model.tokenizer = lambda text: tokenizer(text)
    with pytest.raises(ValueError, match=r"expected a model with an ldm_core\.tokenizer\.CLIPTokenizer"):
        TrainableEmbedding(model, WORD, "dog")


def test_files_that_cannot_be_written_are_refused(tmp_path: Path, model: LatentDiffusion) -> None:
    word = TrainableEmbedding(model, WORD, "dog")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        word.save(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="names must be 'diffusers' or 'kohya', not 'webui'"):
        word.save(tmp_path / "x.safetensors", names="webui")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
