"""Two threads use one model at once: accelerations and recorders keep their calls apart."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.accelerated_networks import CONTEXT, X, draw
from torch import Tensor, nn

from ldm_core import DeepCache, merge_tokens, record_attention
from ldm_core.attention import attention_layers
from ldm_core.unet import UNet

OTHER = draw(2, 4, 16, 16, seed=7)


@contextmanager
def meeting_in(module: nn.Module) -> Iterator[None]:
    """Both threads are in the network at once: each waits for the other before this module."""
    barrier = threading.Barrier(2, timeout=30)

    def meet(module: nn.Module, args: Any) -> None:
        barrier.wait()

    hook = module.register_forward_pre_hook(meet)
    try:
        yield
    finally:
        hook.remove()


def in_two_threads(call: Callable[[Tensor], Any]) -> list[Any]:
    def run(x: Tensor) -> Any:
        with torch.no_grad():  # which is a thread's own
            return call(x)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, (X, OTHER)))


def walk_of(cached: DeepCache) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([cached(x * (1 + t / 1000), t, CONTEXT) for t in (900, 800, 700, 600)])


@torch.no_grad()
def test_deep_cache(unet: UNet) -> None:
    expected = [walk_of(DeepCache(unet, 2))(x) for x in (X, OTHER)]
    with meeting_in(unet.down[0]):
        found = in_two_threads(walk_of(DeepCache(unet, 2)))
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


@torch.no_grad()
def test_deep_cache_whose_threads_are_in_its_deep_part(unet: UNet) -> None:
    """There `whole` takes what comes up to the last blocks."""
    expected = [DeepCache(unet).whole(x, 900, CONTEXT)[1] for x in (X, OTHER)]
    with meeting_in(unet.mid):
        found = in_two_threads(lambda x: DeepCache(unet).whole(x, 900, CONTEXT)[1])
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


def test_a_deep_cache_is_copied_and_pickled_without_what_it_keeps(unet: UNet) -> None:
    cached = DeepCache(unet, 2)
    with torch.no_grad():
        cached(X, 900, CONTEXT)
    for another in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        assert (len(another._walks), another.interval) == (0, 2)


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False], ids=["each its own block", "one without"])
def test_merge_tokens(unet: UNet, own: bool) -> None:
    def merged(x: Tensor) -> Tensor:
        with merge_tokens(unet, 0.5):
            return unet(x, 500, CONTEXT)

    def plain(x: Tensor) -> Tensor:
        return unet(x, 500, CONTEXT)

    def call(x: Tensor) -> Tensor:
        return merged(x) if own or x is X else plain(x)

    expected = [call(x) for x in (X, OTHER)]
    block = unet.down[0].blocks[0].attention.blocks[0]
    with meeting_in(unet.down[0]), meeting_in(block.norm1):  # the tokens are matched, and not merged yet
        found = in_two_threads(call)
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


@torch.no_grad()
def test_record_attention_counts_the_calls_of_its_own_thread(unet: UNet) -> None:
    def maps_of(x: Tensor) -> list[Tensor]:
        with record_attention(unet, "mid.attention.blocks.0.attn2") as maps:
            unet(x, 500, CONTEXT)
        return next(iter(maps.values()))

    expected = [maps_of(x) for x in (X, OTHER)]
    with meeting_in(unet.mid):
        found = in_two_threads(maps_of)
    for one, other in zip(found, expected):
        assert len(one) == len(other) == 1
        assert torch.equal(one[0], other[0])


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_recorders_end_in_any_order(unet: UNet, order: tuple[int, ...]) -> None:
    before = {name: layer.attention for name, layer in attention_layers(unet)}
    blocks = [record_attention(unet, "mid") for _ in range(3)]
    maps = [block.__enter__() for block in blocks]
    for number in order:
        blocks[number].__exit__(None, None, None)
        unet(X, 500, CONTEXT)
    assert {name: layer.attention for name, layer in attention_layers(unet)} == before
    lengths = [{len(calls) for calls in each.values()} for each in maps]
    assert [lengths[number] for number in order] == [{0}, {1}, {2}]


@torch.no_grad()
def test_a_function_that_was_set_meanwhile_stays(unet: UNet) -> None:
    layer = dict(attention_layers(unet))["mid.attention.blocks.0.attn2"]
    before = layer.attention
    with record_attention(unet, "mid") as maps:
        recorder = layer.attention
        layer.attention = mine = lambda *args, **options: recorder(*args, **options)
        unet(X, 500, CONTEXT)
    assert layer.attention is mine
    unet(X, 500, CONTEXT)
    assert [len(calls) for calls in maps.values()] == [1, 1]
    layer.attention = before
