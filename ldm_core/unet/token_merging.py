"""Token merging: self-attention over fewer tokens, for less arithmetic and some error.

    with merge_tokens(model, ratio=0.5):
        sampler.txt2img("a cat")

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv:2303.17604). Before the
self-attentions of the finest levels, where nearly all of the N x N products are, pixels that look alike are
averaged; afterwards each gets a copy of its average's result. Who joins whom is the bipartite soft matching
of Bolya et al. 2022, "Token Merging: Your ViT But Faster" (arXiv:2210.09461, section 3): one pixel of each
2 x 2 cell is a destination, the other three are sources; every source finds its most similar destination,
and the r = ratio * N most similar ones are merged into theirs. The authors' code is `tomesd`.
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

from ldm_core.unet.network import SpatialTransformer, TransformerBlock, UNet

MOST = 0.75  # the share of sources


@dataclass(frozen=True)
class Merging:
    """Which of M merged tokens each of N tokens goes to: `place` (B, N), values 0..M-1."""

    place: Tensor
    count: int

    def merge(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C): the means of the tokens that go to one place."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # 16 bits lose the sum of a plain area
        total = wide.new_zeros(x.shape[0], self.count, x.shape[2])
        total = total.scatter_add(1, self.place[..., None].expand_as(x), wide)
        size = total.new_zeros(x.shape[0], self.count)
        size = size.scatter_add(1, self.place, size.new_ones(()).expand_as(self.place))
        return (total / size[..., None]).to(x.dtype)

    def unmerge(self, y: Tensor) -> Tensor:
        """(B, M, C) -> (B, N, C): each token takes what its place holds."""
        return y.gather(1, self.place[..., None].expand(-1, -1, y.shape[2]))


def match(
    x: Tensor, size: tuple[int, int], ratio: float, generator: torch.Generator | None = None
) -> Merging:
    """The bipartite soft matching of x (B, h * w, C), by cosine similarity; size (h, w).

    The destinations are the top left pixels of the cells, or drawn with the generator, alike for the whole
    batch. Every image is matched by itself. The similarities hold 3/16 N^2 numbers.
    """
    batch, n, _ = x.shape
    target, source = _partition(*size, generator)
    target, source = target.to(x.device), source.to(x.device)
    tokens = F.normalize(x.detach(), dim=-1)
    best, into = (tokens[:, source] @ tokens[:, target].transpose(1, 2)).max(dim=-1)  # (B, sources)
    r = min(int(ratio * n), len(source))
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, alone = order[:, :r], order[:, r:]

    # The destinations come first in the merged sequence, and then the sources that stay alone.
    rows = torch.arange(n - r, device=x.device)
    place_of_source = torch.empty_like(into)
    place_of_source.scatter_(1, merged, into.gather(1, merged))
    place_of_source.scatter_(1, alone, rows[len(target) :].expand(batch, -1))
    place = torch.empty(batch, n, dtype=torch.long, device=x.device)
    place[:, target] = rows[: len(target)]
    place[:, source] = place_of_source
    return Merging(place, n - r)


def _partition(h: int, w: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Indices into h * w pixels: one of each 2 x 2 cell, cells that the edge cuts included; all others."""
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
    """Merge tokens in the self-attentions of the model's U-Net while the block runs.

    This affects calls from the thread that runs the block; other threads may use the same model meanwhile,
    with blocks of their own or without. A sampler that another thread calls merges nothing. Training with
    gradient checkpointing does not go together with it on a GPU: there the backward pass computes the blocks
    again in a thread of autograd's, without merging, and PyTorch raises an error for the other shapes.

    model: a `LatentDiffusion`, a U-Net, or a module with one in it. ratio: in [0, 0.75], the share of tokens
    that are merged away; 0 changes nothing. max_downsample: the coarsest level that merges, as the latents'
    size over the level's: 1 is the finest level alone, 2 the next as well.
    generator: draw a destination in each cell anew at every call, which the paper finds better than fixed
    ones; what a picture is then depends on the calls before it, so that parts of a batch do not agree with
    the whole any more.
    Raises ValueError for a ratio outside, for no U-Net of this package, or for no such self-attention.
    """
    if not 0.0 <= ratio <= MOST:
        raise ValueError(f"ratio must be in [0, {MOST}], the share of tokens to merge away, not {ratio}")
    transformers = _transformers(_unet_of(model), max_downsample)
    hooks = [_Hook(transformer, ratio, generator) for transformer in transformers] if ratio else []
    try:
        for hook in hooks:
            hook.attach()
        yield
    finally:
        for hook in hooks:
            hook.detach()


def _unet_of(model: Any) -> UNet:
    root = getattr(model, "unet", model)
    unets = [part for part in root.modules() if isinstance(part, UNet)] if isinstance(root, nn.Module) else []
    if not unets:
        raise ValueError(f"{type(root).__name__} is no U-Net of this package, which merging tokens needs")
    return unets[0]


def _transformers(unet: UNet, max_downsample: int) -> list[SpatialTransformer]:
    """Those with self-attentions, on the levels from 1 to `max_downsample`."""
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
    """On a spatial transformer, whose input has the size; its blocks, whose inputs are matched; and their
    self-attentions, whose inputs are merged and outputs unmerged. Acts in one thread."""

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
    """The hook, which does nothing when another thread calls the module."""
    owner = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == owner else None
