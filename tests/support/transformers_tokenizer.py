"""The tokenizer of transformers, with this package's vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ldm_core.clip.bpe import read_merges, vocabulary


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    tokens = vocabulary()
    tokens[-2:] = ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in read_merges())]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
