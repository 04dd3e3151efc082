"""Every conditioner refuses what it does not know with a ValueError of one line, and counts what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.examples import examples
from support.texts import text_conditioner
from support.tiny_clip import tiny_clip
from torch.nn.functional import avg_pool2d

from ldm_core.conditioners import (
    ClassEmbedder,
    ClassEmbedderConfig,
    ClassEmbedding,
    Depth,
    LowResolution,
    MaskedImage,
    NoisedImage,
    Retrieval,
    RetrievalConfig,
    Retriever,
    SemanticMap,
    SemanticMapConfig,
    SpatialRescaler,
    Unclip,
    UnclipConfig,
)

TEXT, CLIP = text_conditioner(), tiny_clip()
CONDITIONERS: dict[str, Any] = {
    "classes": ClassEmbedder(ClassEmbedding(ClassEmbedderConfig(5, 4)), ["a", "b"]),
    "map": SemanticMap(SpatialRescaler(SemanticMapConfig(3))),
    "low resolution": LowResolution(),
    "masked": MaskedImage(lambda images: avg_pool2d(images, 4)),
    "retrieval": Retrieval(CLIP, Retriever(torch.eye(16)), 2, RetrievalConfig(16)),
    "depth": Depth(TEXT, lambda image: image[:, 0]),
    "noised": NoisedImage(TEXT),
    "unclip": Unclip(TEXT, CLIP.image_encoder, UnclipConfig(16)),
}

leaves = st.sampled_from(
    [
        *(
            None,
            True,
            0,
            3,
            -1,
            2.5,
            float("nan"),
            "",
            "a",
            "\x1b[1m",
            b"a",
            10**30,
            object(),
            {},
            [],
            (),
            set(),
        ),
        *(
            Image.new("RGB", (8, 8)),
            Image.new("L", (8, 8), 2),
            Image.new("LA", (1, 9)),
            Image.new("F", (0, 0)),
        ),
        *(torch.zeros(3, 8, 8), torch.ones(1, 3, 8, 8), torch.zeros(2, 3, 16), torch.full((16,), 1.0)),
        *(torch.tensor(2), torch.zeros(8, 8), torch.zeros(0, 3, 8, 8), torch.full((1, 8, 8), torch.nan)),
        *(torch.zeros(1, 8, 8, dtype=torch.long), torch.zeros(2, 8, 8, dtype=torch.complex64)),
    ]
)
names = ["prompt", "image", "images", "embedding", "embeddings", "weights", "depth"]
names += ["noise_level", "mixture_noise_level", "other"]
inputs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(names), inner, max_size=4),
    ),
    max_leaves=8,
)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("kind", CONDITIONERS)
@given(inputs)
@examples(60)
def test_inputs_are_counted_or_refused(kind: str, given: Any) -> None:
    conditioner = CONDITIONERS[kind]
    with torch.no_grad():
        counted, condition = outcome(conditioner.count, given, "these"), outcome(conditioner, given)
    if isinstance(counted, str):
        assert counted.isprintable()
        assert len(counted) < 700
        assert isinstance(condition, str), "what cannot be counted is no input"
    elif not isinstance(condition, str):
        assert condition.rows == counted
    if hasattr(conditioner, "latent_size") and not isinstance(counted, str):
        size = conditioner.latent_size(given)
        assert size is None or (isinstance(condition, str) or size == tuple(condition.concat.shape[2:]))
