"""FreeU: amplify the backbone of the U-Net's upward path, and damp low frequencies of its skip connections.

    with free_u(model, b=(1.5, 1.6), s=(0.9, 0.2)):
        sampler.txt2img("a cat")

Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net" (arXiv:2309.11497, section 3.2). Before a block of the
upward path concatenates its input h and the skip connection,

    h      half of the channels are multiplied by b
    skip   the frequencies next to 0 (2 x 2 of the shifted spectrum) are multiplied by s

The authors' values, (b1, b2) and (s1, s2): SD 1.4 (1.3, 1.4), SD 1.5 (1.5, 1.6), SD 2.1 (1.4, 1.6), all with
(0.9, 0.2).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm_core.unet.network import UNet, unet_of

Placement = Literal["original", "diffusers"]


@contextmanager
def free_u(
    model: Any,
    b: tuple[float, float] = (1.5, 1.6),
    s: tuple[float, float] = (0.9, 0.2),
    *,
    placement: Placement = "original",
    adaptive: bool = False,
) -> Iterator[None]:
    """A context manager that applies FreeU to calls of the model's U-Net from the current thread.

    model: a `LatentDiffusion`, a U-Net, or a module that contains one. b, s: factors of the backbone and of
    the skip connections, each for the wide and for the narrower blocks; (1, 1) for both changes nothing.
    placement: "original", the authors' code: the first pair where h has 4 * model_channels, the second where
    it has 2 * model_channels. "diffusers": the deepest level and the next one.
    adaptive: the authors' later version: b varies over the picture, as (b - 1) m + 1 with m the mean of h's
    channels, scaled to [0, 1] for each image.
    Raises ValueError for factors that are not finite, for another placement, and for a model without a U-Net
    of this package or without such blocks.
    """
    if not all(len(pair) == 2 and all(math.isfinite(factor) for factor in pair) for pair in (b, s)):
        raise ValueError(f"b and s must be pairs of finite numbers, not {b!r:.60} and {s!r:.60}")
    blocks = _blocks(unet_of(model, "FreeU"), placement)
    owner = threading.get_ident()

    def hook(channels: int, which: int) -> Callable[..., Any]:
        def change(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if threading.get_ident() != owner:
                return None
            h, skip = args[0][:, :channels], args[0][:, channels:]
            h = amplified(h, b[which], adaptive)
            return (torch.cat([h, damped(skip, s[which])], dim=1), *args[1:])

        return change

    handles = [
        block.register_forward_pre_hook(hook(channels, which))
        for block, channels, which in blocks
        if (b[which], s[which]) != (1, 1)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def amplified(h: Tensor, factor: float, adaptive: bool = False) -> Tensor:
    """h (B, C, h, w) with the first half of its channels multiplied."""
    half = h.shape[1] // 2
    scale: Tensor | float = factor
    if adaptive:
        mean = h.mean(dim=1, keepdim=True)  # (B, 1, h, w)
        low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
        scale = (factor - 1) * (mean - low) / (high - low).clamp(min=torch.finfo(h.dtype).tiny) + 1
    return torch.cat([h[:, :half] * scale, h[:, half:]], dim=1)


def damped(skip: Tensor, factor: float) -> Tensor:
    """skip (B, C, h, w) with the lowest frequencies multiplied. Computed in float32."""
    if factor == 1:
        return skip
    height, width = skip.shape[2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=(2, 3)), dim=(2, 3))
    mask = torch.ones(height, width, device=skip.device)
    top, left = max(height // 2 - 1, 0), max(width // 2 - 1, 0)
    mask[top : height // 2 + 1, left : width // 2 + 1] = factor
    changed = torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask, dim=(2, 3)), dim=(2, 3))
    return changed.real.to(skip.dtype)


def _blocks(unet: UNet, placement: str) -> list[tuple[nn.Module, int, int]]:
    """The blocks that change, the channels of their input without the skip connection, and their factors."""
    if placement not in ("original", "diffusers"):
        raise ValueError(f"placement must be 'original' or 'diffusers', not {placement!r:.40}")
    config, found = unet.config, []
    widths = [config.model_channels * mult for mult in config.channel_mult]
    channels = widths[-1]
    for level, (up, width) in enumerate(zip(unet.up, reversed(widths), strict=True)):
        blocks: Any = up.blocks
        for block in blocks:
            mult = channels // config.model_channels
            which = {4: 0, 2: 1}.get(mult) if placement == "original" else level
            if which in (0, 1):
                found.append((block, channels, which))
            channels = width
    if not found:
        raise ValueError("the U-Net has no blocks of 4 or 2 times its model_channels, which FreeU changes")
    return found
