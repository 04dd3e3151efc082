"""The U-Net: eps_theta(z_t, t, tau(y)) of the latent diffusion paper (arXiv:2112.10752).

Residual blocks take the timestep embedding, spatial transformers the context (section 3.3 and figure 3).
Without a context, as for unconditional models, self-attention takes the place of the transformers. The
outputs of each level on the way down are skip connections to the same level on the way up.
CompVis's counterpart is `UNetModel` in `ldm.modules.diffusionmodules.openaimodel`; its flat `input_blocks`
and `output_blocks` are grouped by level here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.nn.blocks import NormSilu, ResampleBlock, Upsample, double, group_norm, norm_silu
from ldm_core.unet.config import UNetConfig
from ldm_core.unet.encoder import Context, Encoder, UNetBlock, as_tensor, resampled
from ldm_core.unet.grounding import GroundedContext, PositionNet
from ldm_core.unet.residuals import Residuals


class UpLevel(nn.Module):
    """The blocks of one resolution on the way up, and the upsampling unless it is the finest."""

    def __init__(self, blocks: list[UNetBlock], resample: Upsample | ResampleBlock | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Context) -> Tensor:
        """Each block takes the last remaining skip connection, concatenated to its input channels."""
        for block, skip in zip(self.blocks, reversed(skips)):
            x = block(torch.cat([x, skip], dim=1), emb, context)
        return x if self.resample is None else resampled(self.resample, x, emb)


class UNet(Encoder):
    """Predicts the noise (or v) in a noisy latent. `down` is ordered from fine to coarse, `up` in reverse."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.model_channels * mult for mult in config.channel_mult]
        channels, skips = widths[-1], list(self.skip_channels)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(self._block(channels + skips.pop(), width, level))
                channels = width
            self.up.append(UpLevel(blocks, self._upsampling(channels) if level > 0 else None))

        gated = config.gated_self_attention and config.context_dim is not None
        self.position_net = PositionNet(config.context_dim or 0) if gated else None
        self.norm_silu: NormSilu = norm_silu
        self.norm_out = group_norm(channels, eps=1e-5)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def _upsampling(self, channels: int) -> Upsample | ResampleBlock:
        return self._resample_block(channels, double) if self.config.resblock_updown else Upsample(channels)

    # Whether `context` may be a KeptContext. Not inherited: a subclass must set it, as it may use the context
    # differently.
    takes_kept_context = True
    takes_residuals = True

    # Computes `predict` without residuals in another way, with the same arguments; set by `ldm_core.compile`
    # and `ldm_core.capture`. Copies of the network are plain.
    runner: Callable[[Tensor, Tensor, Context, Tensor | None], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "runner"}

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Context = None,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """The prediction (B, out_channels, h, w) for noisy latents, in the dtype of x.

        x: (B, in_channels, h, w), with h and w multiples of `config.downsampling`.
        t: timesteps in 0..T-1, a number or a tensor (B,); fractions are allowed.
        context: (B, M, context_dim), or None without cross-attention. With gated self-attention also a
            `GroundedContext`; without its objects, this is the plain U-Net.
        y: class labels (B,) or vectors (B, adm_in_channels), for a model that takes them.
        residuals: of a control (`ldm_core.Control`), added to the features.

        Raises ValueError for inconsistent shapes, and for t that is not a finite real number.
        """
        self._check(x, t, context, y)
        t = as_tensor(t, x)
        if self.runner is None or residuals is not None or isinstance(context, GroundedContext):
            return self.predict(x, t, context, y, residuals)
        return self.runner(x, t, context, y)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        context: Context = None,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """`forward` with a tensor t and without checks. What it executes does not depend on any value."""
        first, emb = self.enter(x, t, y)
        skips, x = self.encode(first, emb, context, residuals)
        if residuals is not None:
            skips, x = residuals.added(skips, x)

        per_level = self.config.num_res_blocks + 1
        for level in self.up:
            x = level(x, skips[-per_level:], emb, context)
            del skips[-per_level:]

        return self.leave(x)

    def leave(self, x: Tensor) -> Tensor:
        """The prediction (B, out_channels, h, w) from the last level's features (B, model_channels, h, w)."""
        return self.conv_out(self.norm_silu(self.norm_out, x))


def unet_of(model: Any, needed_by: str) -> UNet:
    """The U-Net of a `LatentDiffusion`, of a module, or itself. Raises ValueError if there is none."""
    root = getattr(model, "unet", model)
    unets = [part for part in root.modules() if isinstance(part, UNet)] if isinstance(root, nn.Module) else []
    if not unets:
        raise ValueError(f"{type(root).__name__} is no U-Net of this package, which {needed_by} needs")
    return unets[0]
