"""Files of learned words, built as the programs write them, and a model to put them on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.configs import SMALL_SD1
from support.reference import random_model
from torch import Tensor, nn

from ldm_core.adapters.textual_inversion import TextualInversion, apply_textual_inversion
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.model import LatentDiffusion

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
