"""Files that lie in their metadata and settings: `load` and the doctor refuse each at once, in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.examples import examples
from support.hostile_settings import (
    CLAIMS,
    DOCUMENTS,
    NARROW,
    VALUES,
    changed,
    check_short,
    claim,
    examined,
    leaves,
    refused,
    set_metadata,
    soon,
)
from support.reference import random_model

import ldm_core
from ldm_core.checkpoint import folder as names
from ldm_core.checkpoint import save
from ldm_core.config import ConfigError, LatentDiffusionConfig

VALID = NARROW.to_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without metadata."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save(random_model(NARROW), path)
    return set_metadata(path, path.with_name("bare.safetensors"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    save(random_model(NARROW), path, layout="diffusers")
    return path


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", [*DOCUMENTS, *CLAIMS])
def test_a_configuration_in_the_metadata(name: str, whole: Path, tmp_path: Path) -> None:
    text = DOCUMENTS[name] if name in DOCUMENTS else claim(NARROW, name)
    path = set_metadata(whole, tmp_path / "x.safetensors", ldm_core__config=text)
    assert refused(lambda: ldm_core.load(path)).startswith("x.safetensors")
    examined(path)


def test_the_file_itself_loads(whole: Path, folder: Path, tmp_path: Path) -> None:
    path = set_metadata(whole, tmp_path / "x.safetensors", ldm_core__config=json.dumps(VALID))
    assert ldm_core.load(path).config == NARROW
    assert ldm_core.load(folder).config == NARROW


@pytest.mark.parametrize("value", VALUES)
def test_any_odd_value_at_any_place(value: str) -> None:
    """Of all settings at once: each is an error of configuration, or a configuration."""
    with soon():
        for place in leaves(VALID):
            try:
                config = LatentDiffusionConfig.from_dict(changed(VALID, place, VALUES[value]))
            except ConfigError as error:
                check_short(error)
            else:
                hash(config)


WORDS = {
    "no list": "3",
    "nested deeply": "[" * 100_000,
    "no pairs": '["a"]',
    "20,000 words": json.dumps([[f"w{i}", [49408 + i]] for i in range(20_000)]),
    "10,000 letters": json.dumps([["a" * 10_000, [49408]]]),
    "an id beyond the table": '[["a", [49408]]]',
    "an id of 2**62": '[["a", [4611686018427387904]]]',
    "an id of the vocabulary": '[["a", [5]]]',
    "a negative id": '[["a", [-1]]]',
    "an id that is true": '[["a", [true]]]',
    "an id that is NaN": '[["a", [NaN]]]',
    "an id that is text": '[["a", ["49408"]]]',
    "100,000 ids": json.dumps([["a", [49408] * 100_000]]),
}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", WORDS)
def test_words_in_the_metadata(name: str, whole: Path, tmp_path: Path) -> None:
    stated = {"ldm_core__config": json.dumps(VALID), "ldm_core__added_words": WORDS[name]}
    path = set_metadata(whole, tmp_path / "x.safetensors", **stated)
    assert refused(lambda: ldm_core.load(path)).startswith("x.safetensors")
    examined(path)


def test_a_word_needs_a_row_of_the_table(whole: Path, tmp_path: Path) -> None:
    stated = {"ldm_core__config": json.dumps(VALID), "ldm_core__added_words": '[["toy", [49408]]]'}
    path = set_metadata(whole, tmp_path / "x.safetensors", **stated)
    assert "'toy' as (49408,); the text encoder's table has no rows" in refused(lambda: ldm_core.load(path))


def test_shapes_that_make_no_network_are_named_in_words(whole: Path, tmp_path: Path) -> None:
    tensors, path = load_file(whole), tmp_path / "x.safetensors"
    key = next(key for key in tensors if key.endswith("token_embedding.weight"))
    save_file({**tensors, key: torch.ones(8)}, path)
    assert "do not form a known text_encoder" in refused(lambda: ldm_core.load(path))
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
    assert f"{key.split('.')[-2]}.weight' is missing" in refused(lambda: ldm_core.load(path))


TOKENS: dict[str, tuple[str, Any]] = {
    "20,000 words": (names.ADDED_TOKENS, {f"w{i}": 49408 + i for i in range(20_000)}),
    "10,000 letters": (names.ADDED_TOKENS, {"a" * 10_000: 49408}),
    "an id beyond the table": (names.ADDED_TOKENS, {"a": 49408}),
    "an id of 2**62": (names.ADDED_TOKENS, {"a": 2**62}),
    "a negative id": (names.ADDED_TOKENS, {"a": -1}),
    "an id that is true": (names.ADDED_TOKENS, {"a": True}),
    "an id that is NaN": (names.ADDED_TOKENS, {"a": float("nan")}),
    "an id of many digits": (names.TOKENIZER, {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}),
    "a decoder's id beyond": (names.TOKENIZER, {"added_tokens_decoder": {"49408": {"content": "a"}}}),
}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", TOKENS)
def test_words_of_a_folders_tokenizer(name: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model", copy_function=link)
    file, content = TOKENS[name]
    replace_file(copy / file, json.dumps(content))
    assert refused(lambda: ldm_core.load(copy)).startswith("model")
    examined(copy)


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def replace_file(path: Path, text: str) -> None:
    """Another file in the place of a link."""
    path.unlink(missing_ok=True)
    path.write_text(text)


FILES = (names.UNET, names.AUTOENCODER, names.TEXT_ENCODER, names.SCHEDULER, names.MODEL_INDEX)
SETTINGS: dict[str, tuple[str, str, Any]] = {
    "many levels": (names.UNET, "block_out_channels", [32] * 100_000),
    "a format as a width": (names.UNET, "block_out_channels", ["%1000000000d", "%1000000000d"]),
    "2**62 channels": (names.UNET, "block_out_channels", [2**62, 2**62]),
    "many blocks of a kind": (names.UNET, "down_block_types", ["CrossAttnDownBlock2D"] * 100_000),
    "blocks per level": (names.UNET, "layers_per_block", 10**9),
    "true blocks": (names.UNET, "layers_per_block", True),
    "a context of NaN": (names.UNET, "cross_attention_dim", float("nan")),
    "negative heads": (names.UNET, "attention_head_dim", -8),
    "heads of half": (names.UNET, "attention_head_dim", 0.5),
    "a sample of 2**62": (names.UNET, "sample_size", 2**62),
    "channels of text": (names.UNET, "in_channels", "%1000000000d"),
    "widths of true": (names.AUTOENCODER, "block_out_channels", [True, True]),
    "an infinite scale": (names.AUTOENCODER, "scaling_factor", float("inf")),
    "a scale of many digits": (names.AUTOENCODER, "scaling_factor", 10**400),
    "a true scale": (names.AUTOENCODER, "scaling_factor", True),
    "latents": (names.AUTOENCODER, "latent_channels", 2**62),
    "layers": (names.TEXT_ENCODER, "num_hidden_layers", 10**9),
    "positions": (names.TEXT_ENCODER, "max_position_embeddings", 2**62),
    "negative heads of text": (names.TEXT_ENCODER, "num_attention_heads", -1),
    "an activation of 10,000 letters": (names.TEXT_ENCODER, "hidden_act", "\x1b[2J" * 2_000),
    "betas of many digits": (names.SCHEDULER, "beta_start", 10**400),
    "true betas": (names.SCHEDULER, "beta_end", True),
    "timesteps": (names.SCHEDULER, "num_train_timesteps", 2**62),
    "a class of 10,000 letters": (names.MODEL_INDEX, "unet", ["diffusers", "\x1b[2J" * 2_000]),
    "a class that is a list": (names.MODEL_INDEX, "unet", ["diffusers", [[[1]]]]),
}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_a_folder(name: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model", copy_function=link)
    file, key, value = SETTINGS[name]
    content = json.loads((folder / file).read_text())
    replace_file(copy / file, json.dumps({**content, key: value}))
    refused(lambda: ldm_core.load(copy))
    examined(copy)


@pytest.mark.parametrize("document", ["a list", "nested deeply", "nested deeply, closed"])
@pytest.mark.parametrize("file", FILES)
def test_a_document_of_a_folder(file: str, document: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model", copy_function=link)
    replace_file(copy / file, DOCUMENTS[document])
    assert file in refused(lambda: ldm_core.load(copy))
    examined(copy)


@examples(20)
@given(st.sampled_from(sorted(leaves(VALID))), st.sampled_from(sorted(VALUES)))
def test_an_odd_value_of_the_metadata_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, place: tuple[str, ...], value: str
) -> None:
    text = json.dumps(changed(VALID, place, VALUES[value]))
    path = set_metadata(whole, tmp_path_factory.mktemp("odd") / "x.safetensors", ldm_core__config=text)
    try:
        with soon():
            ldm_core.load(path)
    except ValueError as error:
        check_short(error)
