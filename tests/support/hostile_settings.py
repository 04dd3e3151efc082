"""What hostile files claim: values in the place of settings, and files to put them in."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.configs import TINY

from ldm_core.checkpoint import CheckpointError, inspect
from ldm_core.config import LatentDiffusionConfig

SECONDS = 3.0  # of computing for one refusal; it takes a tenth at most

# The smallest model that loads: CLIP's vocabulary, narrow.
NARROW = replace(
    TINY["sd1"],
    text_encoder=replace(TINY["sd1"].text_encoder, width=32, layers=1, heads=1),
    unet=replace(TINY["sd1"].unet, context_dim=32),
)

# JSON that is not in the place of a mapping, or is none.
DOCUMENTS = {
    "a list": "[]",
    "a number": "3",
    "nothing": "null",
    "text": '"x"',
    "cut short": '{"unet": ',
    "nested deeply": "[" * 100_000,
    "nested deeply, closed": '{"unet":' * 900 + "1" + "}" * 900,
    "an integer of many digits": '{"image_size": ' + "9" * 5000 + "}",
}

# In the place of one setting.
VALUES: dict[str, Any] = {
    "2**62": 2**62,
    "negative": -(2**62),
    "many digits": 10**400,
    "true": True,
    "nothing": None,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "no whole number": 4.5,
    "text": "four",
    "a format": "%1000000000d",
    "an empty list": [],
    "many entries": [1] * 100_000,
    "nested": [[[[[[1]]]]]],
    "a mapping": {"a": 1},
}

# Of a stated configuration: where, and the values that would make something large or fail late.
CLAIMS: dict[str, tuple[str, Any]] = {
    "many levels": ("unet.channel_mult", [1] * 100_000),
    "levels of text": ("unet.channel_mult", ["ab"] * 2),
    "wide": ("unet.model_channels", 32 * 10**6),
    "2**62 wide": ("unet.model_channels", 2**62),
    "a format as a width": ("unet.model_channels", "%1000000000d"),
    "many blocks": ("unet.num_res_blocks", 10**9),
    "deep": ("unet.transformer_depth", 10**9),
    "true as a depth": ("unet.transformer_depth", True),
    "a negative head": ("unet.num_heads", -4),
    "a head of 4.5": ("unet.num_heads", 4.5),
    "a context of NaN": ("unet.context_dim", float("nan")),
    "many resolutions": ("unet.attention_resolutions", list(range(10**5))),
    "resolutions in text": ("unet.attention_resolutions", "421"),
    "channels of an autoencoder": ("autoencoder.ch", 32 * 10**9),
    "levels of an autoencoder": ("autoencoder.ch_mult", [2**62]),
    "blocks of an autoencoder": ("autoencoder.num_res_blocks", -1),
    "a resolution of 2**62": ("autoencoder.resolution", 2**62),
    "layers": ("text_encoder.layers", 10**9),
    "a vocabulary": ("text_encoder.vocab_size", 2**62),
    "positions": ("text_encoder.context_length", 2**62),
    "a text's width": ("text_encoder.width", 0),
    "a format as a text's width": ("text_encoder.width", "%1000000000d"),
    "a padding id": ("text_encoder.pad_token_id", 2**62),
    "a negative padding id": ("text_encoder.pad_token_id", -1),
    "a skip of true": ("text_encoder.clip_skip", True),
    "timesteps": ("noise_schedule.timesteps", 2**62),
    "true timesteps": ("noise_schedule.timesteps", True),
    "betas of NaN": ("noise_schedule.linear_start", float("nan")),
    "betas as text": ("noise_schedule.linear_end", "0.01"),
    "a scale of many digits": ("latent_scale", 10**400),
    "an infinite scale": ("latent_scale", float("inf")),
    "a scale of true": ("latent_scale", True),
    "an image size": ("image_size", 2**62),
    "an image size of true": ("image_size", True),
    "a part that is a list": ("unet", []),
    "a part that is nothing": ("unet", None),
    "an unknown field of 10,000 letters": ("unet.\x1b[2J" + "a" * 10_000, 1),
}


def leaves(settings: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in nested mappings, the lists in them counted as values."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        yield (*place, key)


def changed(settings: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The settings with another value at one place."""
    result = copy.deepcopy(settings)
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return result


def claim(config: LatentDiffusionConfig, name: str) -> str:
    """The JSON of a configuration with one of CLAIMS in it."""
    place, value = CLAIMS[name]
    return json.dumps(changed(config.to_dict(), tuple(place.split(".", 1)), value))


def set_metadata(path: Path, target: Path, **metadata: str) -> Path:
    """A copy of a safetensors file with other metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {key.replace("__", "."): value for key, value in metadata.items()}
    raw = json.dumps(header).encode()
    target.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
    return target


@contextmanager
def soon() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < SECONDS


def refused(call: Callable[[], Any]) -> str:
    """What a call that must raise a ValueError says; a file chooses neither when nor at what length."""
    with soon(), pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert text
    check_short(caught.value)
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def check_short(error: ValueError) -> None:
    assert len(str(error)) < 1000


def examined(path: Path) -> None:
    """The doctor finds no way to load a file, or cannot read it."""
    with soon():
        try:
            report = inspect(path)
        except CheckpointError as error:
            text = str(error)
        else:
            text = str(report)
            assert report.load is None, report.why
    assert all(line.isprintable() for line in text.split("\n"))
    assert max(map(len, text.split("\n"))) < 2000
