"""Looking inside: collect the attention weights that a model computes while it runs.

    with record_attention(model, where="attn2") as maps:
        sampler.txt2img("a cat", steps=10)
    maps["unet.mid.attention.blocks.0.attn2"][0]     # (B, heads, N, M), first call

The maps of `attn2` say where in the picture each token of the prompt acts (Hertz et al. 2022,
"Prompt-to-Prompt", arXiv:2208.01626, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ldm_core.attention import AttentionFunction, attention_layers, attention_weights

AttentionMaps = dict[str, list[Tensor]]


@contextmanager
def record_attention(model: Any, where: str | Callable[[str], bool] = "attn2") -> Iterator[AttentionMaps]:
    """Collect the weights of the layers whose dotted name contains `where`, or for which it is true.

    Yields {layer name: one (B, heads, N, M) tensor per call, on the CPU}, which fills while the block
    runs. The layers get their own attention functions back at the end, also after an error. A name that
    matches no layer is a ValueError.
    """
    matches = (lambda name: where in name) if isinstance(where, str) else where
    chosen = {name: layer for name, layer in attention_layers(model) if matches(name)}
    if not chosen:
        names = ", ".join(name for name, _ in list(attention_layers(model))[:5])
        raise ValueError(f"no attention layer matches {where!r}; the names look like {names}")
    maps: AttentionMaps = {name: [] for name in chosen}
    originals = {name: layer.attention for name, layer in chosen.items()}
    try:
        for name, layer in chosen.items():
            layer.attention = _recorder(layer.attention, maps[name])
        yield maps
    finally:
        for name, layer in chosen.items():
            layer.attention = originals[name]


def _recorder(attention: AttentionFunction, maps: list[Tensor]) -> AttentionFunction:
    def recording(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        maps.append(attention_weights(q.detach(), k.detach(), causal=causal).cpu())
        return attention(q, k, v, causal=causal)

    return recording
