"""A text conditioner without weights, for conditioners that take prompts and more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.conditioners import TextConditioner


def tokens(prompts: str | Sequence[str]) -> Tensor:
    return torch.tensor([[ord(letter) for letter in f"{prompt:5.5}"] for prompt in prompts])


def text_conditioner() -> TextConditioner:
    """Contexts (B, 5, 4) that differ for prompts with other first five letters."""
    return TextConditioner(tokens, lambda ids: ids[:, :, None].float().expand(-1, -1, 4))
