"""Looking inside: collect the attention weights that a model computes while it runs.

    with record_attention(model, where="attn2") as maps:
        sampler.txt2img("a cat", steps=10)
    maps["unet.mid.attention.blocks.0.attn2"][0]     # (B, heads, N, M), first call

The maps of `attn2` say where in the picture each token of the prompt acts (Hertz et al. 2022,
"Prompt-to-Prompt", arXiv:2208.01626, section 3).
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
    """Collect the weights of the layers whose dotted name contains `where`, or for which it is true.

    Yields {layer name: one (B, heads, N, M) tensor per call, on the CPU}, which fills with the calls of this
    thread while the block runs. At the end the layers compute as before, also after an error, and in whatever
    order several blocks end. A name that matches no layer is a ValueError.
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
    """An attention function that records its weights, in one thread, and then calls the layer's own."""

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
        """Take this recorder out of the layer's chain of recorders, wherever in it it is."""
        self._maps = None  # a function that somebody put around it since keeps calling it
        outer: MultiHeadAttention | _Recorder = layer
        while isinstance(outer.attention, _Recorder):
            if outer.attention is self:
                outer.attention = self.attention
                return
            outer = outer.attention
