"""ControlNet: a trainable copy of the U-Net's first half, which sees a hint such as edges or a depth map.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543). With the
copy F, the hint network E and zero convolutions Z (1 x 1, which start as zeros), and the U-Net's input x:

    h_0 = conv_in(x) + E(hint)          h_i = F_i(h_(i-1), t, context)
    residual_i = Z_i(h_i)               added to skip connection i, and the last one to the middle block

A new ControlNet therefore changes nothing. The author's counterpart is `ControlNet` in `cldm/cldm.py`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.control.config import ControlNetConfig
from ldm_core.unet.encoder import Context, Encoder
from ldm_core.unet.network import UNet
from ldm_core.unet.residuals import Residuals, plus


class HintEncoder(nn.Module):
    """Hints (B, hint_channels, f * h, f * w) to features (B, channels, h, w)."""

    def __init__(self, hint_channels: int, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(hint_channels, widths[0], 3, padding=1)
        self.convs = nn.ModuleList()
        for width, wider in pairwise(widths):
            self.convs.append(nn.Conv2d(width, width, 3, padding=1))
            self.convs.append(nn.Conv2d(width, wider, 3, padding=1, stride=2))
        for conv in (self.conv_in, *self.convs):
            # With PyTorch's own initial weights, thin lines fade to a hundredth on the way, and train slowly.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.conv_out = zeroed(nn.Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        """A hint (B, hint_channels, H, W) -> features (B, channels, h, w)."""
        x = F.silu(self.conv_in(hint))
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNet(Encoder):
    """The residuals of a U-Net for a hint."""

    PART = "controlnet"
    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.hint = HintEncoder(config.hint_channels, config.hint_widths, config.model_channels)
        self.zero_convs = nn.ModuleList(zero_conv(channels) for channels in self.skip_channels)
        self.zero_mid = zero_conv(self.skip_channels[-1])

    @classmethod
    def of(
        cls, unet: UNet, hint_channels: int = 3, hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    ) -> ControlNet:
        """A new ControlNet with the weights of a U-Net, as training starts; it changes nothing yet."""
        # A ControlNet sees no objects.
        own = {**asdict(unet.config), "gated_self_attention": False}
        config = ControlNetConfig(**own, hint_channels=hint_channels, hint_widths=hint_widths)
        weight = next(unet.parameters())
        network = cls(config).to(weight.device, weight.dtype)
        network.load_state_dict({**network.state_dict(), **shared_weights(network, unet)})
        return network

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Context,
        hint: Tensor,
        y: Tensor | None = None,
        *,
        is_encoded: bool = False,
    ) -> Residuals:
        """The residuals of all skip connections and of the middle block, each (B, C, h', w').

        x, t, context, y: as in `UNet.forward`.
        hint: (B, hint_channels, f * h, f * w) in [0, 1], where f is `config.hint_factor`; or what
            `encode_hint` returned for it (`is_encoded`).

        Raises ValueError for inconsistent shapes.
        """
        self._check(x, t, context, y)
        features = hint if is_encoded else self.encode_hint(hint)
        first, emb = self.enter(x, t, y)
        skips, middle = self.encode(plus(first, features), emb, context)
        residuals = tuple(conv(skip) for conv, skip in zip(self.zero_convs, skips))
        return Residuals(residuals, self.zero_mid(middle))

    def encode_hint(self, hint: Tensor) -> Tensor:
        """(B, hint_channels, f * h, f * w) -> (B, model_channels, h, w), the same for all steps of a run."""
        channels, f = self.config.hint_channels, self.config.hint_factor
        if hint.ndim != 4 or hint.shape[1] != channels or hint.shape[2] % f or hint.shape[3] % f:
            raise ValueError(
                f"controlnet: expected a hint of (B, {channels}, H, W) with H and W multiples of {f}, got "
                f"{tuple(hint.shape)}"
            )
        features: Tensor = self.hint(hint)
        return features


@torch.no_grad()
def transferred(network: ControlNet, old: UNet, new: UNet) -> ControlNet:
    """A copy for another base model: its weights + (new - old), wherever the U-Nets have a counterpart.

    The author's transfer. old: the U-Net that the ControlNet was trained for, such as SD1.5's. new: another
    of the same architecture. Raises ValueError for U-Nets of other shapes.
    """
    before, after = shared_weights(network, old), shared_weights(network, new)
    if before.keys() != after.keys():
        raise ValueError("transferred: the two U-Nets have different weights")
    result: ControlNet = deepcopy(network)
    state = result.state_dict()
    for name in before:
        if not before[name].shape == after[name].shape == state[name].shape:
            raise ValueError(f"transferred: the U-Nets' and the ControlNet's {name} differ in shape")
        added = after[name].to(state[name]).float() - before[name].to(state[name]).float()
        state[name].copy_((state[name].float() + added).to(state[name]))
    return result


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution, with weights and bias set to 0 in place."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def zero_conv(channels: int) -> nn.Conv2d:
    """A 1x1 convolution from and to `channels` channels that begins at 0."""
    return zeroed(nn.Conv2d(channels, channels, 1))


def shared_weights(network: ControlNet, unet: nn.Module) -> dict[str, Tensor]:
    """The weights of a U-Net that have a counterpart in a ControlNet, by name."""
    own = network.state_dict()
    return {name: value for name, value in unet.state_dict().items() if name in own}
