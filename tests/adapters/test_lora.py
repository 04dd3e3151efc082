"""Adapters on a model: what they add, at which scale, and that nothing of them is left behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.adapter_files import (
    Pair,
    Tensors,
    kohya,
    largest_error,
    layers,
    make,
    same_bits,
    write,
)
from support.examples import examples
from support.lora_models import TOLERANCE, Adapters, whole_change
from support.reference import relative_error

from ldm_core.adapters.lora import apply_lora


@pytest.fixture(scope="module")
def changes(pair: Pair, adapters: Adapters) -> Adapters:
    """The same adapters as whole changes of weights."""
    return [
        tuple(
            {name: {"diff": whole_change(t, network.get_submodule(name).weight)} for name, t in part.items()}
            for network, part in zip((pair.unet, pair.text_encoder), adapter, strict=True)
        )
        for adapter in adapters
    ]


def summed(pair: Pair, changes: Adapters, scales: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference gives with several adapters' changes, all added to its weights."""
    totals: list[dict[str, Tensors]] = [{}, {}]
    for parts, scale in zip(changes, scales, strict=True):
        for total, part in zip(totals, parts, strict=True):
            for name, tensors in part.items():
                delta = scale * tensors["diff"]
                total[name] = {"diff": total[name]["diff"] + delta if name in total else delta}
    return pair.merged(totals[0], totals[1])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [0.4, -1.0])
def test_the_scale_multiplies_the_change(
    pair: Pair, adapters: Adapters, paths: list[Path], scale: float, fused: bool
) -> None:
    adapter = apply_lora(pair.model, paths[0])
    if fused:
        adapter.fuse()
    adapter.scale = scale
    assert largest_error(pair.ours(), pair.merged(*adapters[0], scale=scale)) < TOLERANCE
    adapter.remove()
    adapter = apply_lora(pair.model, paths[0], scale=scale)
    assert largest_error(pair.ours(), pair.merged(*adapters[0], scale=scale)) < TOLERANCE
    adapter.remove()


def test_one_layers_change_is_linear_in_the_scale(pair: Pair, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya(make(layers(pair.unet, ("conv_out",)))))
    adapter = apply_lora(pair.model, path)
    outputs = {}
    for scale in (0.0, 1.0, 2.5):
        adapter.scale = scale
        outputs[scale] = pair.ours()[0]
    assert torch.equal(outputs[0.0], pair.before[0])
    expected = outputs[0.0] + 2.5 * (outputs[1.0] - outputs[0.0])
    assert relative_error(outputs[2.5], expected) < 1e-6
    adapter.remove()


@pytest.mark.parametrize("fused", [False, True])
def test_the_text_encoder_can_have_its_own_scale(
    pair: Pair, adapters: Adapters, paths: list[Path], fused: bool
) -> None:
    unet, text = adapters[0]
    adapter = apply_lora(pair.model, paths[0], 0.5, text_encoder_scale=0)
    if fused:
        adapter.fuse()
    ours = pair.ours()
    assert relative_error(ours[0], pair.merged(unet, scale=0.5)[0]) < TOLERANCE
    assert torch.equal(ours[1], pair.before[1])
    adapter.scale, adapter.text_encoder_scale = 0, 2
    ours = pair.ours()
    assert torch.equal(ours[0], pair.before[0])
    assert relative_error(ours[1], pair.merged({}, text, scale=2)[1]) < TOLERANCE
    adapter.text_encoder_scale = None
    adapter.scale = 0.3
    assert largest_error(pair.ours(), pair.merged(unet, text, scale=0.3)) < TOLERANCE
    adapter.remove()


def test_stacked_adapters_add_up_and_come_off_in_any_order(
    pair: Pair, changes: Adapters, paths: list[Path]
) -> None:
    alone = []
    for path in paths:
        adapter = apply_lora(pair.model, path)
        alone.append(pair.ours())
        adapter.remove()
    for order in itertools.permutations(range(3)):
        on = [apply_lora(pair.model, path) for path in paths]
        if order == (0, 1, 2):
            assert largest_error(pair.ours(), summed(pair, changes, [1, 1, 1])) < TOLERANCE
        for number in order[:2]:
            on[number].remove()
        assert same_bits(pair.ours(), alone[order[2]])
        on[order[2]].remove()
        assert same_bits(pair.ours(), pair.before)


def test_removing_twice_is_harmless_and_fusing_after_it_is_an_error(pair: Pair, paths: list[Path]) -> None:
    for fused in (False, True):
        adapter = apply_lora(pair.model, paths[0])
        if fused:
            adapter.fuse()
            adapter.fuse()
        adapter.remove()
        adapter.remove()
        adapter.unfuse()
        adapter.scale = 2
        assert same_bits(pair.ours(), pair.before)
        with pytest.raises(ValueError, match=r"0\.safetensors was removed from its model"):
            adapter.fuse()


@pytest.mark.parametrize("number", range(3))
def test_fused_is_live(pair: Pair, paths: list[Path], number: int) -> None:
    weights = pair.weights()
    adapter = apply_lora(pair.model, paths[number], scale=0.7)
    live = pair.ours()
    now = pair.weights()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    adapter.fuse()
    fused = pair.weights()
    changed = {name for name in weights if not torch.equal(fused[name], weights[name])}
    assert changed == set(adapter.layers)
    assert largest_error(pair.ours(), live) < TOLERANCE
    adapter.unfuse()
    assert same_bits(pair.ours(), live)
    adapter.remove()


OPERATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["fuse", "unfuse", "remove", -0.5, 0, 0.6, 1])), max_size=8
)


@examples(20, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, ending=st.permutations(range(3)))
def test_any_sequence_of_operations(
    pair: Pair, changes: Adapters, paths: list[Path], operations: list[Any], ending: list[int]
) -> None:
    """The model is always the sum of what is on it, fused or not; and at the end what it was."""
    weights = pair.weights()
    on = [apply_lora(pair.model, path) for path in paths]
    scales, fused = [1.0, 1.0, 1.0], set[int]()
    for number, operation in operations:
        if isinstance(operation, str):
            if operation == "fuse" and on[number]._state == "removed":
                continue
            getattr(on[number], operation)()
            fused = fused | {number} if operation == "fuse" else fused - {number}
        else:
            on[number].scale = operation
        scales[number] = 0.0 if on[number]._state == "removed" else on[number].scale
        if not fused:
            now = pair.weights()
            assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert largest_error(pair.ours(), summed(pair, changes, scales)) < TOLERANCE
    for number in ending:
        on[number].remove()
    assert same_bits(pair.ours(), pair.before)
