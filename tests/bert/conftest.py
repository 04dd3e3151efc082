"""Fixtures of the tests of BERT: the reference tokenizers, with this package's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm_core.bert.wordpiece import read_vocabulary


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text(read_vocabulary(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference(vocabulary_file: Path) -> Any:
    """`BertWordPieceTokenizer` of the tokenizers library: the ids of a text without [CLS] and [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.BertWordPieceTokenizer(str(vocabulary_file), lowercase=True)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
