"""Token merging: self-attention over fewer tokens, which is faster and approximate.

    with merge_tokens(model, ratio=0.5):
        sampler.txt2img("a cat")

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv:2303.17604). Before the
self-attentions of the finest levels, which contain nearly all of the N x N products, similar pixels are
averaged; afterwards each pixel gets a copy of the result of its average. The pairs are found by the bipartite
soft matching of Bolya et al. 2022, "Token Merging: Your ViT But Faster" (arXiv:2210.09461, section 3): one
pixel of each 2 x 2 cell is a destination and the other three are sources; every source is matched with its
most similar destination, and the r = ratio * N most similar pairs are merged. The authors' code is `tomesd`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.unet.network import UNet, unet_of
from ldm_core.unet.transformer import SpatialTransformer, TransformerBlock

MOST = 0.75  # the fraction of tokens that are sources


@dataclass(frozen=True)
class Merging:
    """The index of the merged token, 0..M-1, for each of N tokens: `place` (B, N). `count` is M."""

    place: Tensor
    count: int

    def merge(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C): the mean of the tokens of each place."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # a sum over a large area needs 32 bits
        total = wide.new_zeros(x.shape[0], self.count, x.shape[2])
        total = total.scatter_add(1, self.place[..., None].expand_as(x), wide)
        size = total.new_zeros(x.shape[0], self.count)
        size = size.scatter_add(1, self.place, size.new_ones(()).expand_as(self.place))
        return (total / size[..., None]).to(x.dtype)

    def unmerge(self, y: Tensor) -> Tensor:
        """(B, M, C) -> (B, N, C): copies the merged token of each place to its tokens."""
        return y.gather(1, self.place[..., None].expand(-1, -1, y.shape[2]))


def match(
    x: Tensor, size: tuple[int, int], ratio: float, generator: torch.Generator | None = None
) -> Merging:
    """The bipartite soft matching of x (B, h * w, C), by cosine similarity; size (h, w).

    The destinations are the top left pixels of the cells or, with a generator, drawn at random, and are the
    same for the whole batch. Each image is matched separately. The similarities take 3/16 N^2 numbers.
    """
    batch, n, _ = x.shape
    target, source = _partition(*size, generator)
    target, source = target.to(x.device), source.to(x.device)
    tokens = F.normalize(x.detach(), dim=-1)
    best, into = (tokens[:, source] @ tokens[:, target].transpose(1, 2)).max(dim=-1)  # (B, sources)
    r = min(int(ratio * n), len(source))
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, alone = order[:, :r], order[:, r:]

    # In the merged sequence, the destinations come first, followed by the sources that are not merged.
    rows = torch.arange(n - r, device=x.device)
    place_of_source = torch.empty_like(into)
    place_of_source.scatter_(1, merged, into.gather(1, merged))
    place_of_source.scatter_(1, alone, rows[len(target) :].expand(batch, -1))
    place = torch.empty(batch, n, dtype=torch.long, device=x.device)
    place[:, target] = rows[: len(target)]
    place[:, source] = place_of_source
    return Merging(place, n - r)


def _partition(h: int, w: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Indices into h * w pixels: one pixel of each (possibly incomplete) 2 x 2 cell, and all other pixels."""
    top, left = torch.meshgrid(torch.arange(0, h, 2), torch.arange(0, w, 2), indexing="ij")
    if generator is not None:
        down, right = torch.randint(2, (2, *top.shape), generator=generator, device=generator.device).cpu()
        top, left = (top + down).clamp(max=h - 1), (left + right).clamp(max=w - 1)
    target = (top * w + left).flatten()
    others = torch.ones(h * w, dtype=torch.bool)
    others[target] = False
    return target, others.nonzero().flatten()


@contextmanager
def merge_tokens(
    model: Any, ratio: float = 0.5, max_downsample: int = 1, generator: torch.Generator | None = None
) -> Iterator[None]:
    """A context manager that merges tokens in the self-attentions of the model's U-Net.

    Only calls from the thread that entered the context are affected; other threads may use the same model at
    the same time, with or without a context of their own. Gradient checkpointing is not supported on a GPU:
    the backward pass recomputes the blocks in a thread of autograd, without merging, and PyTorch raises an
    error because the shapes differ.

    model: a `LatentDiffusion`, a U-Net, or a module that contains one. ratio: the fraction of tokens that are
    merged away, in [0, 0.75]; 0 changes nothing. max_downsample: the coarsest level that merges, as the ratio
    of the latents' size to the level's: 1 is the finest level only, 2 includes the next.
    generator: draw new random destinations at every call, which the paper finds better than fixed ones. An
    image then depends on the previous calls, and the parts of a batch differ from the whole batch.
    Raises ValueError for a ratio outside its range, and for a model without a U-Net of this package or
    without such a self-attention.
    """
    if not 0.0 <= ratio <= MOST:
        raise ValueError(f"ratio must be in [0, {MOST}], the share of tokens to merge away, not {ratio}")
    transformers = _transformers(unet_of(model, "merging tokens"), max_downsample)
    hooks = [_Hook(transformer, ratio, generator) for transformer in transformers] if ratio else []
    try:
        for hook in hooks:
            hook.attach()
        yield
    finally:
        for hook in hooks:
            hook.detach()


def _transformers(unet: UNet, max_downsample: int) -> list[SpatialTransformer]:
    """The spatial transformers with self-attention on the levels from 1 to `max_downsample`."""
    levels = [*unet.down, unet.mid, *unet.up]
    depths = [min(i, len(unet.down) - 1, len(levels) - 1 - i) for i in range(len(levels))]
    found = [
        module
        for depth, level in zip(depths, levels)
        for module in level.modules()
        if 2**depth <= max_downsample and isinstance(module, SpatialTransformer) and _attending(module)
    ]
    if not found:
        raise ValueError(f"the U-Net has no self-attention at levels of max_downsample {max_downsample}")
    return found


def _attending(transformer: SpatialTransformer) -> list[TransformerBlock]:
    blocks = [block for block in transformer.blocks if isinstance(block, TransformerBlock)]
    return [block for block in blocks if not block.disable_self_attention]


class _Hook:
    """Hooks on a spatial transformer, to read h and w; on its blocks, to match their inputs; and on their
    self-attentions, to merge the inputs and unmerge the outputs. They act in one thread only."""

    def __init__(
        self, transformer: SpatialTransformer, ratio: float, generator: torch.Generator | None
    ) -> None:
        self.transformer, self.ratio, self.generator = transformer, ratio, generator
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._handles.append(self.transformer.register_forward_pre_hook(_in_this_thread(self._take_size)))
        for block in _attending(self.transformer):
            self._handles.append(block.register_forward_pre_hook(_in_this_thread(self._match)))
            self._handles.append(block.attn1.register_forward_pre_hook(_in_this_thread(self._merge)))
            self._handles.append(block.attn1.register_forward_hook(_in_this_thread(self._unmerge)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _take_size(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._h, self._w = args[0].shape[-2:]

    def _match(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._merging = match(args[0], (self._h, self._w), self.ratio, self.generator)

    def _merge(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._merging.merge(args[0]), *args[1:])

    def _unmerge(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self._merging.unmerge(output)


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, restricted to calls from the current thread."""
    owner = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == owner else None
