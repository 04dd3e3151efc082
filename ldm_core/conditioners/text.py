"""Prompts as a Condition: a tokenizer and a text encoder, to whose output the U-Net attends.

tau_theta of the latent diffusion paper (arXiv:2112.10752, section 3.3). CompVis's counterparts are
`FrozenCLIPEmbedder` and `FrozenOpenCLIPEmbedder` in `ldm.modules.encoders.modules`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.protocols import TextEncoder, Tokenizer


def as_prompts(prompt: Any, name: str = "prompt") -> list[str]:
    """One or several prompts as a list. Raises ValueError for anything but strings."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or len(prompts) == 0:
        raise ValueError(f"{name} must be a string or a non-empty list of strings, not {prompt!r}")
    for i, one in enumerate(prompts):
        if not isinstance(one, str):
            raise ValueError(f"{name} {i} must be a string, not {type(one).__name__}")
    return list(prompts)


@dataclass(frozen=True)
class TextConditioner:
    """Prompts as a Condition with context (B, N, width).

    clip_skip: number of final text encoder blocks to skip; None: the default of the encoder.
    batch_size: number of prompts to encode at once; None: all.
    Raises ValueError for a clip_skip that the encoder does not take, as BERT's.
    """

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    clip_skip: int | None = None
    batch_size: int | None = None

    unconditional = ""

    def __post_init__(self) -> None:
        if self.clip_skip is not None and not _takes_clip_skip(self.text_encoder):
            raise ValueError("clip_skip is CLIP's; this text encoder does not take it")

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return {"text_encoder": self.text_encoder} if isinstance(self.text_encoder, nn.Module) else {}

    def count(self, inputs: Any, name: str = "prompt") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(as_prompts(inputs, name))

    def __call__(self, inputs: str | Sequence[str]) -> Condition:
        """Encode one row per prompt; repeated prompts are encoded once."""
        prompts = as_prompts(inputs)
        distinct = list(dict.fromkeys(prompts))
        contexts = self.encode(self.tokenizer(distinct))
        row = {prompt: i for i, prompt in enumerate(distinct)}
        return Condition(context=contexts[[row[prompt] for prompt in prompts]])

    def encode(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The context (B, N, width) of tokens (B, N).

        hidden: (B, N), True for tokens that no token attends to; of a text encoder that takes `hidden`.
        A text encoder that is a module receives its tokens on its device, any other on the CPU.
        """
        weight = next(iter(parameters(self.text_encoder)), None)
        tokens = tokens if weight is None else tokens.to(weight.device)
        options: dict[str, Any] = {} if self.clip_skip is None else {"clip_skip": self.clip_skip}
        size = self.batch_size or len(tokens)
        if hidden is None:
            return torch.cat([self.text_encoder(chunk, **options) for chunk in tokens.split(size)])
        encoder: Any = self.text_encoder
        pairs = zip(tokens.split(size), hidden.to(tokens.device).split(size))
        return torch.cat([encoder(chunk, hidden=mask, **options) for chunk, mask in pairs])


def parameters(encoder: Any) -> list[nn.Parameter]:
    """The encoder's parameters; empty for a plain function."""
    return list(encoder.parameters()) if isinstance(encoder, nn.Module) else []


def _takes_clip_skip(encoder: Any) -> bool:
    function = encoder.forward if isinstance(encoder, nn.Module) else encoder
    try:
        taken = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C code does not tell
        return True
    return any(p.name == "clip_skip" or p.kind is p.VAR_KEYWORD for p in taken)
