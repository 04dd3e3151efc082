"""What the tests of CLIP files share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.clip_reference import (
    SMALL_B32,
    random_clip,
)

from ldm_core.clip import CLIP

# A small vocabulary keeps these files small; none of the tests here needs a prompt.
CONFIG = replace(SMALL_B32, text_encoder=replace(SMALL_B32.text_encoder, vocab_size=300))


EXACT = replace(
    CONFIG,
    image_encoder=replace(CONFIG.image_encoder, activation="gelu"),
    text_encoder=replace(CONFIG.text_encoder, activation="gelu", pad_token_id=0),
)


Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip(CONFIG)


def write(path: Path, tensors: Tensors) -> Path:
    tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def json_file(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def changed(tensors: Tensors, **changes: Any) -> Tensors:
    result = {**tensors, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in result.items() if value is not None}
