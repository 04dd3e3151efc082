"""What the tests of applied LoRAs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapter_files import (
    CONVOLUTIONS,
    KOHYA_TEXT,
    KOHYA_UNET,
    TINY,
    Pair,
    Tensors,
    change,
    kohya,
    layers,
    loha,
    lokr,
    lora,
    make,
    rank_of,
    same_bits,
    write,
)

TOLERANCE = 1e-5  # float32 through some 60 layers, in another order of additions; measured: at most 3e-6


Adapters = list[Any]  # of (U-Net's, text encoder's) {layer: its tensors}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(TINY)


@pytest.fixture(scope="module")
def adapters(pair: Pair) -> Adapters:
    """Three of different kinds, which share most of their layers: (U-Net, text encoder)."""
    kinds = [
        (lora, KOHYA_UNET + CONVOLUTIONS),
        (lambda s, g: lora(s, g, rank=1, core=len(s) == 4), (*CONVOLUTIONS, "to_q", "proj_in")),
        (lambda s, g: lokr(s, g) if len(s) == 2 else loha(s, g), KOHYA_UNET + CONVOLUTIONS),
    ]
    return [
        (
            make(layers(pair.unet, ends), maker, seed=seed),
            make(layers(pair.text_encoder, KOHYA_TEXT), maker, seed=seed + 10),
        )
        for seed, (maker, ends) in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def paths(adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write(folder / f"{i}.safetensors", kohya(*adapter)) for i, adapter in enumerate(adapters)]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of `pair` its model is what it was before the first, to the bit."""
    if "pair" not in request.fixturenames:
        yield
        return
    pair: Pair = request.getfixturevalue("pair")
    weights, names = pair.weights(), list(pair.model.unet.state_dict())
    yield
    assert list(pair.model.unet.state_dict()) == names
    now = pair.weights()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    for module in pair.model.modules.values():
        for layer in module.modules():
            assert not layer._forward_hooks
            assert "_fused_adapters" not in vars(layer)
    assert same_bits(pair.ours(), pair.before)


def whole_change(tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
    """The change of a weight, with its alpha, in float64."""
    rank = rank_of(tensors)
    assert rank is not None
    factors = {key: x for key, x in tensors.items() if key != "alpha"}
    return torch.from_numpy(change(factors, tuple(weight.shape))) * (float(tensors["alpha"]) / rank)
