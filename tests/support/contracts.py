"""What the tests of `ldm_core.testing` share: small configurations, and how a message is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ldm_core.config import AutoencoderConfig, AutoencoderVQConfig, TextEncoderConfig, UNetConfig
from ldm_core.testing import ContractError

UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_heads=2,
    context_dim=16,
)
AUTOENCODER = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
AUTOENCODER_VQ = AutoencoderVQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=32)
TEXT = TextEncoderConfig(vocab_size=100, context_length=12, width=32, layers=2, heads=2)


def told(check: Callable[..., None], *arguments: Any, **options: Any) -> str:
    """The message of the ContractError that a check must raise."""
    with pytest.raises(ContractError) as caught:
        check(*arguments, **options)
    return str(caught.value)


def expect_told(message: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in message, message


def broken(name: str, part: Any, *words: str) -> Any:
    """A row of a table: what breaks, the part, and words that the message must hold."""
    return pytest.param(part, words, id=name)
