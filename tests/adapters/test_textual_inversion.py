"""Learned embeddings: every kind of file, what they do to a model, and that nothing of them stays behind."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import SMALL, SMALL_SD1
from support.embedding_files import (
    PROMPT,
    VOCABULARY,
    Snapshot,
    diffusers_script,
    draw,
    encoded,
    kohya,
    web_ui,
)
from support.reference import random_model, reference_text_encoder, relative_error
from torch import Tensor, nn

import ldm_core
from ldm_core.adapters.textual_inversion import TextualInversion, apply_textual_inversion
from ldm_core.model import LatentDiffusion

# ---- against transformers and diffusers -------------------------------------------------------------


def with_larger_table(reference: Any, vectors: Tensor) -> Any:
    """A transformers text encoder whose table goes on with these vectors."""
    table = reference.get_input_embeddings()
    rows = torch.cat([table.weight, vectors.to(table.weight)])
    reference.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    return reference


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("sd1", 3),
        ("sd2", 1),
        pytest.param("sd1", 1, marks=pytest.mark.slow),
        pytest.param("sd2", 3, marks=pytest.mark.slow),
    ],
)
def test_hidden_states_agree_with_transformers(tmp_path: Path, kind: str, count: int) -> None:
    """1e-5: room for another order of float32 sums."""
    model = random_model(SMALL[kind])
    reference = with_larger_table(reference_text_encoder(model), draw(count))
    kohya(tmp_path / "toy.pt", draw(count))
    embedding = apply_textual_inversion(model, tmp_path / "toy.pt", name="<cat-toy>")
    tokens = model.tokenizer([PROMPT, "<cat-toy>", "no toy"])
    assert (tokens >= VOCABULARY).sum() == 2 * count
    with torch.no_grad():
        ours = model.text_encoder(tokens)
        theirs = reference(tokens).last_hidden_state
        embedding.remove()
        without = model.text_encoder(model.tokenizer(PROMPT))
    assert relative_error(ours, theirs) < 1e-5
    assert relative_error(ours[:1], without) > 0.1


def test_hidden_states_with_clip_skip_agree_with_transformers(
    model: LatentDiffusion, add: Callable[..., TextualInversion]
) -> None:
    reference = with_larger_table(reference_text_encoder(model), draw(2))
    add()
    with torch.no_grad():
        states = reference(model.tokenizer(PROMPT), output_hidden_states=True).hidden_states
        theirs = getattr(reference, "text_model", reference).final_layer_norm(states[-2])
    assert relative_error(encoded(model, clip_skip=1), theirs) < 1e-5


DIFFUSERS_PROMPTS = [
    "a photo of {0} on a table",
    "{0}",
    "{0}, {0} and a dog",
    "A Painting of {0}, 4k, in the style of {1}!",
    "{1} {0} {1}",
    "nothing learned",
]


@pytest.mark.slow  # whole pipelines
@pytest.mark.parametrize(
    "counts",
    [(3, 1), *(pytest.param(counts, marks=pytest.mark.slow) for counts in [(1, 1), (2, 4)])],
    ids=str,
)
def test_prompts_agree_with_diffusers(
    tmp_path: Path,
    model: LatentDiffusion,
    transformers_tokenizer: Any,
    counts: tuple[int, int],
) -> None:
    """The same two files through diffusers' loader: the same ids, and from them the same hidden states."""
    from diffusers.loaders import TextualInversionLoaderMixin

    web_ui(tmp_path / "first.pt", draw(counts[0], seed=1), name="<cat-toy>")
    diffusers_script(tmp_path / "second.bin", draw(counts[1], seed=2), name="<style>", row=counts[1] == 1)

    loader: Any = TextualInversionLoaderMixin()
    loader.tokenizer = copy.deepcopy(transformers_tokenizer)
    loader.text_encoder = reference_text_encoder(model)
    loader.components, loader.hf_device_map = {}, None
    for name in ("first.pt", "second.bin"):
        loader.load_textual_inversion(str(tmp_path / name), local_files_only=True)
        apply_textual_inversion(model, tmp_path / name)

    for template in DIFFUSERS_PROMPTS:
        prompt = template.format("<cat-toy>", "<style>")
        theirs = loader.tokenizer(
            loader.maybe_convert_prompt(prompt, loader.tokenizer),
            padding="max_length",
            max_length=77,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        assert torch.equal(model.tokenizer(prompt), theirs), prompt
        with torch.no_grad():
            states = loader.text_encoder(theirs).last_hidden_state
        assert relative_error(encoded(model, prompt), states) < 1e-5, prompt


def test_removing_restores_the_model(model: LatentDiffusion, add: Callable[..., TextualInversion]) -> None:
    before, ids, hidden = Snapshot(model), model.tokenizer(PROMPT), encoded(model)
    embedding = add()
    assert not torch.equal(model.tokenizer(PROMPT), ids)
    assert not torch.equal(encoded(model), hidden)
    embedding.remove()
    before.check()
    assert torch.equal(model.tokenizer(PROMPT), ids)
    assert torch.equal(encoded(model), hidden)
    embedding.remove()
    before.check()


def test_prompts_without_the_name_give_the_same_bits(
    model: LatentDiffusion, add: Callable[..., TextualInversion]
) -> None:
    hidden = encoded(model, "a cat toy")
    add()
    assert torch.equal(encoded(model, "a cat toy"), hidden)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_removal_in_any_order(
    model: LatentDiffusion, add: Callable[..., TextualInversion], order: tuple[int, ...]
) -> None:
    before = Snapshot(model)
    names = ["<a>", "<b>", "my-style"]
    embeddings = [add(name, draw(k + 1, seed=k)) for k, name in enumerate(names)]
    assert [e.tokens for e in embeddings] == [
        (VOCABULARY,),
        (VOCABULARY + 1, VOCABULARY + 2),
        (VOCABULARY + 3, VOCABULARY + 4, VOCABULARY + 5),
    ]
    hidden = [encoded(model, f"a {name} b") for name in names]
    rest = set(range(3))
    for k in order:
        embeddings[k].remove()
        rest.remove(k)
        for other in rest:
            assert torch.equal(encoded(model, f"a {names[other]} b"), hidden[other])
        with pytest.raises(IndexError):
            model.text_encoder(torch.tensor([embeddings[k].tokens]))
    before.check()


def test_ids_do_not_clash_with_those_still_applied(
    model: LatentDiffusion, add: Callable[..., TextualInversion]
) -> None:
    first, second = add("<a>"), add("<b>", draw(3, seed=1))
    first.remove()
    third = add("<a>", draw(4, seed=2))
    assert not set(third.tokens) & set(second.tokens)
    assert torch.equal(embedded(model, third), third.vectors)
    assert torch.equal(embedded(model, second), second.vectors)


def embedded(model: Any, embedding: TextualInversion) -> Tensor:
    """What the table answers for the embedding's ids."""
    return model.text_encoder.token_embedding(torch.tensor(embedding.tokens))


def test_an_old_handle_leaves_a_later_embedding_alone(
    model: LatentDiffusion, add: Callable[..., TextualInversion]
) -> None:
    old = add()
    old.remove()
    new = add(vectors=draw(2, seed=5))
    assert (new.name, new.tokens) == (old.name, old.tokens)
    old.remove()
    assert list(new.tokens) == model.tokenizer.encode("<cat-toy>")  # type: ignore[attr-defined]
    assert torch.equal(embedded(model, new), new.vectors)


def test_models_that_share_a_text_encoder(tmp_path: Path, model: LatentDiffusion) -> None:
    """A copy with another part has a tokenizer of its own: the ids of both go through one table."""
    other = replace(model)
    kohya(tmp_path / "a.pt", draw(2))
    first = apply_textual_inversion(model, tmp_path / "a.pt")
    second = apply_textual_inversion(other, tmp_path / "a.pt")
    assert not set(first.tokens) & set(second.tokens)
    assert torch.equal(encoded(model, "an a"), encoded(other, "an a"))
    first.remove()
    assert torch.equal(embedded(other, second), second.vectors)


def test_models_that_share_nothing(tmp_path: Path) -> None:
    models = [random_model(SMALL_SD1, seed=k) for k in range(2)]
    before, hidden = Snapshot(models[1]), encoded(models[1])
    kohya(tmp_path / "a.pt", draw(2))
    embedding = apply_textual_inversion(models[0], tmp_path / "a.pt", name="<cat-toy>")
    before.check()
    assert torch.equal(encoded(models[1]), hidden)
    with pytest.raises(IndexError):
        models[1].text_encoder(torch.tensor([embedding.tokens]))


def test_a_deep_copy_goes_on_alone(model: LatentDiffusion, add: Callable[..., TextualInversion]) -> None:
    embedding = add()
    twin = copy.deepcopy(model)
    hidden = encoded(model)
    embedding.remove()
    embedding.vectors.zero_()
    assert torch.equal(encoded(twin), hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("cast_first", [True, False])
def test_every_precision(
    model: LatentDiffusion, add: Callable[..., TextualInversion], dtype: torch.dtype, cast_first: bool
) -> None:
    """The bits of the same encoder with the vectors in its table."""
    embedding = None if cast_first else add()
    model.to(dtype=dtype)
    encoder: Any = copy.deepcopy(model.text_encoder)
    if embedding is None:
        embedding = add()
    else:
        encoder.token_embedding._forward_hooks.clear()
        encoder.token_embedding._forward_pre_hooks.clear()
    rows = torch.cat([encoder.token_embedding.weight, embedding.vectors.to(dtype)])
    encoder.token_embedding = nn.Embedding.from_pretrained(rows)
    hidden = encoded(model)
    assert hidden.dtype == dtype
    with torch.no_grad():
        assert torch.equal(hidden, encoder(model.tokenizer(PROMPT)))
    assert embedding.vectors.dtype == torch.float32


def test_a_failed_call_leaves_no_trace(model: LatentDiffusion, add: Callable[..., TextualInversion]) -> None:
    add("<a>")
    add("<b>", draw(1, seed=1))
    hidden = encoded(model, "<a> <b>")
    with pytest.raises(IndexError):
        model.text_encoder(torch.tensor([[320, VOCABULARY + 99]]))
    assert torch.equal(encoded(model, "<a> <b>"), hidden)


def test_threads_share_a_model(model: LatentDiffusion, add: Callable[..., TextualInversion]) -> None:
    add()
    prompts = ["<cat-toy>", "a <cat-toy>", "a big <cat-toy> here", "none"]
    hidden = [encoded(model, prompt) for prompt in prompts]
    wrong: list[str] = []

    def work(k: int) -> None:
        for _ in range(20):
            if not torch.equal(encoded(model, prompts[k]), hidden[k]):
                wrong.append(prompts[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_vectors_can_be_trained(model: LatentDiffusion, add: Callable[..., TextualInversion]) -> None:
    """Equation 2 of the paper differentiates by the vectors alone. What came before does not matter."""
    with torch.inference_mode():
        embedding = add()
        encoded(model)
    embedding.vectors.requires_grad_()
    model.text_encoder(model.tokenizer(PROMPT)).square().mean().backward()
    assert embedding.vectors.grad is not None
    assert (embedding.vectors.grad != 0).all(dim=1).all()


# ---- pictures ---------------------------------------------------------------------------------------

SMALL_PICTURE: dict[str, Any] = {"steps": 2, "height": 64, "width": 64, "seed": 1, "output": "tensor"}


def test_a_word_with_known_vectors_draws_the_known_picture(tmp_path: Path) -> None:
    """A name with the table's own vectors of two words stands for these words, in both prompts."""
    model = ldm_core.load()
    ids = model.tokenizer.encode("red panda")  # type: ignore[attr-defined]
    vectors = model.text_encoder.token_embedding.weight[ids].detach().clone()  # type: ignore[attr-defined]
    torch.save({"<animal>": vectors}, tmp_path / "learned_embeds.bin")
    sampler = ldm_core.Sampler(model)
    known = sampler.txt2img("a red panda face", "red panda", **SMALL_PICTURE)
    unknown = sampler.txt2img("a <animal> face", "<animal>", **SMALL_PICTURE)
    embedding = apply_textual_inversion(model, tmp_path / "learned_embeds.bin")
    assert torch.equal(sampler.txt2img("a <Animal> face", "<ANIMAL>", **SMALL_PICTURE), known)
    embedding.remove()
    assert torch.equal(sampler.txt2img("a <animal> face", "<animal>", **SMALL_PICTURE), unknown)
    assert not torch.equal(known, unknown)
