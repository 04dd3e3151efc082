"""Files of learned words: each kind is read, and what is none or does not fit is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.embedding_files import VOCABULARY, Snapshot, diffusers_script, draw, encoded, kohya, web_ui
from torch import Tensor, nn

import ldm_core
from ldm_core.adapters.embedding_file import read_embedding
from ldm_core.adapters.textual_inversion import TextualInversion, apply_textual_inversion
from ldm_core.checkpoint import CheckpointError
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.model import LatentDiffusion


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
    "several": ({"<a>": draw(1), "<b>": draw(1)}, "is not an embedding: expected one tensor.*has <a>, <b>"),
    "several terms": (
        {"string_to_param": {"a": draw(1), "b": draw(1)}},
        r"more than one.*string_to_param\.a",
    ),
    "more beside it": ({"emb_params": draw(1), "x": draw(1)}, "more than one embedding.*emb_params, x"),
    "a LoRA": ({"a.lora_down.weight": draw(1), "a.lora_up.weight": draw(1)}, "is a LoRA"),
    "a model": ({f"layer.{k}": draw(1) for k in range(9)}, r"layer\.4, … \(9 in all\)"),
    "NaN": (
        {"<a>": draw(2).index_fill(1, torch.tensor([5]), torch.nan)},
        "<a> has non-finite values",
    ),
    "too large for float32": ({"<a>": 1e39 * draw(2).double()}, "non-finite"),
    "integers": ({"<a>": draw(2).long()}, "dtype torch.int64; expected floating-point vectors"),
    "complex": ({"<a>": draw(2).cfloat()}, "complex64"),
    "no vectors": ({"<a>": draw(0)}, r"shape \(0, 64\)"),
    "a number": ({"<a>": torch.tensor(1.0)}, r"shape \(\)"),
    "three dimensions": ({"<a>": draw(2)[None]}, r"shape \(1, 2, 64\)"),
    "made for SD1": ({"<a>": draw(2, width=768)}, r"width 768 \(SD1\).*text encoder has width 64"),
    "made for SD2": ({"<a>": draw(2, width=1024)[0]}, r"width 1024 \(SD2\).*has width 64"),
    "a tensor alone": (draw(2), "expected a dictionary of tensors"),
}


@pytest.mark.one_in(5)
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
    model = ldm_core.build(ldm_core.config.SD1, device="meta")
    kohya(tmp_path / "a.pt", draw(1, width=1024))
    with pytest.raises(CheckpointError, match=r"width 1024 \(SD2\), .* has width 768 \(SD1\)"):
        apply_textual_inversion(model, tmp_path / "a.pt")


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

    with pytest.raises(ValueError, match=r"CLIPTokenizer, to add words to; its tokenizer is a function"):
        apply_textual_inversion(replace(model, tokenizer=mine), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"got a function whose token_embedding is a NoneType"):
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
