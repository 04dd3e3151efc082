"""Collects the attention weights that a model computes while it runs.

    with record_attention(model, where="attn2") as maps:
        sampler.txt2img("a cat", steps=10)
    maps["unet.mid.attention.blocks.0.attn2"][0]     # (B, heads, N, M), first call

The maps of `attn2`, the cross-attention, show where in the image each token of the prompt acts (Hertz et al.
2022, "Prompt-to-Prompt", arXiv:2208.01626, section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ldm_core.attention import AttentionFunction, MultiHeadAttention, attention_layers
from ldm_core.nn.attention_backends import attention_weights

AttentionMaps = dict[str, list[Tensor]]


@contextmanager
def record_attention(model: Any, where: str | Callable[[str], bool] = "attn2") -> Iterator[AttentionMaps]:
    """Collect the attention weights of the layers that match `where`.

    where: a substring of the layer's dotted name, or a function from the name to a bool.

    Yields {layer name: [(B, heads, N, M), …]} with one tensor per call, on the CPU. Only calls from the
    thread that opened the block are recorded. On exit, also after an error, the layers are restored; nested
    blocks may exit in any order. Raises ValueError if no layer matches.
    """
    matches = (lambda name: where in name) if isinstance(where, str) else where
    chosen = {name: layer for name, layer in attention_layers(model) if matches(name)}
    if not chosen:
        names = ", ".join(name for name, _ in list(attention_layers(model))[:5])
        raise ValueError(f"no attention layer matches {where!r}; the names look like {names}")
    maps: AttentionMaps = {name: [] for name in chosen}
    recorders = {name: _Recorder(layer.attention, maps[name]) for name, layer in chosen.items()}
    try:
        for name, layer in chosen.items():
            layer.attention = recorders[name]
        yield maps
    finally:
        for name, layer in chosen.items():
            recorders[name].remove_from(layer)


class _Recorder:
    """An attention function that records its weights in one thread and then calls the original function."""

    acts_at_every_call = True  # so that no compiled code and no graph takes its place

    def __init__(self, attention: AttentionFunction, maps: list[Tensor]) -> None:
        self.attention = attention
        self._maps: list[Tensor] | None = maps
        self._thread = threading.get_ident()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        maps = self._maps
        if maps is not None and threading.get_ident() == self._thread:
            maps.append(attention_weights(q.detach(), k.detach(), causal=causal).cpu())
        return self.attention(q, k, v, causal=causal)

    def remove_from(self, layer: MultiHeadAttention) -> None:
        """Remove this recorder from the layer's chain of nested recorders."""
        self._maps = None  # a function that wraps this recorder may still call it
        outer: MultiHeadAttention | _Recorder = layer
        while isinstance(outer.attention, _Recorder):
            if outer.attention is self:
                outer.attention = self.attention
                return
            outer = outer.attention
