"""Learned embeddings: every kind of file, what they do to a model, and that nothing of them stays behind."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, SMALL_SD1
from reference import random_model, reference_text_encoder, relative_error
from safetensors.torch import save_file
from test_tokenizer import transformers_tokenizer  # noqa: F401  (a fixture)
from torch import Tensor, nn

import ldm_core
from ldm_core.checkpoint import CheckpointError
from ldm_core.checkpoint.embedding_file import read_embedding
from ldm_core.model import LatentDiffusion
from ldm_core.textual_inversion import TextualInversion, apply_textual_inversion
from ldm_core.tokenizer import CLIPTokenizer

WIDTH = SMALL_SD1.text_encoder.width
VOCABULARY = CLIPTokenizer.vocab_size
PROMPT = "a photo of <cat-toy> on a table"


def draw(count: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    """Vectors as large as those of the table, so that they matter as much."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def untouched() -> LatentDiffusion:
    return random_model(SMALL_SD1)


@pytest.fixture
def model(untouched: LatentDiffusion) -> LatentDiffusion:
    """A model with a text encoder of its own."""
    return replace(untouched, text_encoder=copy.deepcopy(untouched.text_encoder))


@pytest.fixture
def add(model: LatentDiffusion, tmp_path: Path) -> Callable[..., TextualInversion]:
    """Applies vectors under a name, from a diffusers file."""

    def apply(name: str = "<cat-toy>", vectors: Tensor | None = None) -> TextualInversion:
        path = tmp_path / "learned_embeds.bin"
        torch.save({name: draw(2) if vectors is None else vectors}, path)
        return apply_textual_inversion(model, path)

    return apply


@torch.no_grad()
def encoded(model: LatentDiffusion, prompt: str = PROMPT, **options: Any) -> Tensor:
    return model.text_encoder(model.tokenizer(prompt), **options)


# ---- files, built as the programs write them --------------------------------------------------------


def web_ui(path: Path, vectors: Tensor, name: str = "my-emb", **others: Any) -> None:
    """`Embedding.save` of AUTOMATIC1111's web UI, after training."""
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors.requires_grad_()},
        "name": name,
        "step": 1234,
        "sd_checkpoint": "4bdfc29c",
        "sd_checkpoint_name": "v1-5-pruned",
    }
    torch.save(data | others, path)


def authors(path: Path, vectors: Tensor, placeholder: str = "*", *, torch_1_11: bool = False) -> None:
    """`EmbeddingManager.save` of the paper's authors, whose PyTorch had another ParameterDict."""
    parameters = nn.ParameterDict()
    parameters[placeholder] = nn.Parameter(vectors)
    if torch_1_11:
        vars(parameters)["_parameters"] = OrderedDict(parameters._parameters)
        del vars(parameters)["_keys"]
    row = torch.tensor([[49406, 265, *[49407] * 75]])
    data = {"string_to_token": {placeholder: row[0, 1]}, "string_to_param": parameters}
    torch.save(data, path, _use_new_zipfile_serialization=not torch_1_11)


def diffusers_script(path: Path, vectors: Tensor, name: str = "<cat-toy>", *, row: bool = False) -> None:
    """`textual_inversion.py` of diffusers' examples; on a CPU it saves a view of the whole table."""
    table = torch.cat([torch.zeros(300, WIDTH), vectors])
    learned = table[300] if row else table[300:]
    if path.suffix == ".safetensors":
        save_file({name: learned.clone()}, path, metadata={"format": "pt"})
    else:
        torch.save({name: learned.detach().cpu()}, path)


def kohya(path: Path, vectors: Tensor) -> None:
    """`save_weights` of kohya-ss's train_textual_inversion.py."""
    metadata = {"ss_output_name": "other", "name": "another", "ss_base_model_version": "sd_v1"}
    if path.suffix == ".safetensors":
        save_file({"emb_params": vectors}, path, metadata)
    else:
        torch.save({"emb_params": vectors}, path)


FILES: dict[str, tuple[str, Callable[[Path, Tensor], None], int, str]] = {
    "web UI": ("a.pt", web_ui, 3, "my-emb"),
    "web UI, resumable": (
        "a.pt",
        lambda p, v: web_ui(p, v, optimizer_state_dict={"state": {0: {"exp_avg": torch.zeros(3)}}}),
        3,
        "my-emb",
    ),
    "web UI, unnamed": ("toy.pt", lambda p, v: web_ui(p, v, name=" "), 3, "toy"),
    "authors": ("cat.style.pt", authors, 2, "cat.style"),
    "authors, named": ("cat.pt", lambda p, v: authors(p, v, "<s*>"), 2, "<s*>"),
    "authors, torch 1.11": ("cat.pt", lambda p, v: authors(p, v, torch_1_11=True), 2, "cat"),
    "diffusers, one": ("x.bin", lambda p, v: diffusers_script(p, v, row=True), 1, "<cat-toy>"),
    "diffusers, many": ("x.bin", diffusers_script, 4, "<cat-toy>"),
    "diffusers, safetensors": ("x.safetensors", diffusers_script, 4, "<cat-toy>"),
    "diffusers, row": ("x.safetensors", lambda p, v: diffusers_script(p, v, row=True), 1, "<cat-toy>"),
    "kohya": ("style v2.safetensors", kohya, 5, "style v2"),
    "kohya, .pt": ("style.pt", kohya, 5, "style"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_kind_of_file(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    filename, write, count, name = FILES[kind]
    vectors = draw(count).to(dtype)
    if "diffusers" in kind:
        dtype = torch.float32  # that table is not in 16 bits
    write(tmp_path / filename, vectors.to(dtype, copy=True))
    found, read = read_embedding(tmp_path / filename)
    assert found == name
    assert read.dtype == torch.float32
    assert not read.requires_grad
    assert torch.equal(read, vectors.float())


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_teaches_its_word(tmp_path: Path, model: LatentDiffusion, kind: str) -> None:
    filename, write, count, name = FILES[kind]
    write(tmp_path / filename, draw(count))
    embedding = apply_textual_inversion(model, str(tmp_path / filename))
    assert embedding.name == name
    assert embedding.tokens == tuple(range(VOCABULARY, VOCABULARY + count))
    assert torch.equal(embedding.vectors, draw(count))
    assert model.tokenizer.encode(f"a {name}") == [320, *embedding.tokens]  # type: ignore[attr-defined]
    table = model.text_encoder.token_embedding  # type: ignore[attr-defined]
    assert torch.equal(table(torch.tensor([embedding.tokens])), embedding.vectors[None])


def test_vectors_outlive_their_file(tmp_path: Path, model: LatentDiffusion) -> None:
    path = tmp_path / "a.safetensors"
    kohya(path, draw(2))
    embedding = apply_textual_inversion(model, path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(embedding.vectors, draw(2))


BAD = {
    "sdxl": ({"clip_l": draw(2), "clip_g": draw(2, width=1280)}, "for Stable Diffusion XL.*clip_l, clip_g"),
    "several": ({"<a>": draw(1), "<b>": draw(1)}, "is no embedding: expected one tensor.*has <a>, <b>"),
    "several terms": (
        {"string_to_param": {"a": draw(1), "b": draw(1)}},
        r"more than one.*string_to_param\.a",
    ),
    "more beside it": ({"emb_params": draw(1), "x": draw(1)}, "more than one embedding.*emb_params, x"),
    "a LoRA": ({"a.lora_down.weight": draw(1), "a.lora_up.weight": draw(1)}, "is a LoRA"),
    "a model": ({f"layer.{k}": draw(1) for k in range(9)}, r"layer\.4 and 4 more"),
    "NaN": (
        {"<a>": draw(2).index_fill(1, torch.tensor([5]), torch.nan)},
        "<a> has values that are not finite",
    ),
    "too large for float32": ({"<a>": 1e39 * draw(2).double()}, "not finite"),
    "integers": ({"<a>": draw(2).long()}, "type torch.int64; expected vectors of real numbers"),
    "complex": ({"<a>": draw(2).cfloat()}, "complex64"),
    "no vectors": ({"<a>": draw(0)}, r"shape \(0, 64\)"),
    "a number": ({"<a>": torch.tensor(1.0)}, r"shape \(\)"),
    "three dimensions": ({"<a>": draw(2)[None]}, r"shape \(1, 2, 64\)"),
    "made for SD1": ({"<a>": draw(2, width=768)}, r"width 768 \(SD1\).*text encoder has width 64"),
    "made for SD2": ({"<a>": draw(2, width=1024)[0]}, r"width 1024 \(SD2\).*has width 64"),
    "a tensor alone": (draw(2), "holds no dictionary of tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_fit_are_refused_in_words(
    tmp_path: Path, model: LatentDiffusion, case: str
) -> None:
    contents, message = BAD[case]
    path = tmp_path / "file.pt"
    torch.save(contents, path)
    before = Snapshot(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_textual_inversion(model, path)
    assert "file.pt" in str(caught.value)
    before.check()


def test_a_missing_file(model: LatentDiffusion) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        apply_textual_inversion(model, "nowhere.pt")


def test_an_sd2_embedding_on_an_sd1_model_names_both(tmp_path: Path) -> None:
    model = ldm_core.model.build(ldm_core.config.SD1, device="meta")
    kohya(tmp_path / "a.pt", draw(1, width=1024))
    with pytest.raises(CheckpointError, match=r"width 1024 \(SD2\), .* has width 768 \(SD1\)"):
        apply_textual_inversion(model, tmp_path / "a.pt")


# ---- against transformers and diffusers -------------------------------------------------------------


def with_larger_table(reference: Any, vectors: Tensor) -> Any:
    """A transformers text encoder whose table goes on with these vectors."""
    table = reference.get_input_embeddings()
    rows = torch.cat([table.weight, vectors.to(table.weight)])
    reference.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    return reference


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("count", [1, 3])
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


@pytest.mark.parametrize("counts", [(1, 1), (3, 1), (2, 4)], ids=str)
def test_prompts_agree_with_diffusers(
    tmp_path: Path,
    model: LatentDiffusion,
    transformers_tokenizer: Any,  # noqa: F811
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


# ---- in the model -----------------------------------------------------------------------------------


class Snapshot:
    """All that an embedding could leave behind in a model."""

    def __init__(self, model: LatentDiffusion) -> None:
        self.model, self.tokenizer, self.text_encoder = model, model.tokenizer, model.text_encoder
        self.state = self._state()
        self.weights = {name: (p, p.detach().clone()) for name, p in self._encoder.named_parameters()}

    @property
    def _encoder(self) -> nn.Module:
        assert isinstance(self.model.text_encoder, nn.Module)
        return self.model.text_encoder

    def _state(self) -> list[str]:
        """Every attribute of every module, hooks included, without the weights' values."""
        return [f"{name} {vars(module)!r:.10000}" for name, module in self._encoder.named_modules()]

    def check(self) -> None:
        assert self.model.text_encoder is self.text_encoder
        assert self.model.tokenizer == self.tokenizer
        for name, parameter in self._encoder.named_parameters():
            assert parameter is self.weights[name][0]
            assert torch.equal(parameter, self.weights[name][1])
        assert self._state() == self.state


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


# ---- names and models that do not fit ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["<cat-toy>", "<CAT-Toy>", " <cat-toy>\n"])
def test_a_name_in_use(model: LatentDiffusion, add: Callable[..., TextualInversion], name: str) -> None:
    add()
    before, hidden = Snapshot(model), encoded(model)
    with pytest.raises(ValueError, match="is already in use"):
        add(name)
    before.check()
    assert torch.equal(encoded(model), hidden)


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_an_empty_name(tmp_path: Path, model: LatentDiffusion, name: str) -> None:
    kohya(tmp_path / "a.pt", draw(1))
    before = Snapshot(model)
    with pytest.raises(ValueError, match="words with single spaces"):
        apply_textual_inversion(model, tmp_path / "a.pt", name=name)
    before.check()


@pytest.mark.parametrize(("given", "name"), [("cat", "cat"), (" two\n words ", "two words"), ("*", "*")])
def test_a_name_of_ones_own(tmp_path: Path, model: LatentDiffusion, given: str, name: str) -> None:
    """Also one that is a token already."""
    kohya(tmp_path / "a.pt", draw(1))
    embedding = apply_textual_inversion(model, tmp_path / "a.pt", name=given)
    assert embedding.name == name
    assert model.tokenizer.encode(f"a {name}") == [320, *embedding.tokens]  # type: ignore[attr-defined]


def test_parts_of_another_kind(tmp_path: Path, model: LatentDiffusion) -> None:
    kohya(tmp_path / "a.pt", draw(1))

    def mine(*args: Any) -> Tensor:
        raise AssertionError("never called")

    with pytest.raises(ValueError, match=r"CLIPTokenizer, but the model's tokenizer is a function"):
        apply_textual_inversion(replace(model, tokenizer=mine), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"that of the model, a function, is a NoneType"):
        apply_textual_inversion(replace(model, text_encoder=mine), tmp_path / "a.pt")


def test_a_tokenizer_that_was_exchanged_since(
    model: LatentDiffusion, add: Callable[..., TextualInversion]
) -> None:
    embedding = add()
    mine = CLIPTokenizer(pad_token_id=0)
    model.tokenizer = mine
    embedding.remove()
    assert model.tokenizer is mine


def test_a_handle_says_what_it_is(add: Callable[..., TextualInversion]) -> None:
    embedding = add()
    assert repr(embedding) == "<'<cat-toy>': 2 vectors of width 64, ids 49408..49409>"
    embedding.remove()
    assert repr(embedding) == "<'<cat-toy>': 2 vectors of width 64, removed>"
