"""The configuration of a ControlNet: that of its U-Net, and of the network that reads the hint."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ldm_core.support.limits import MAX_SIZE, require_bool, require_sizes, require_whole
from ldm_core.unet.config import UNetConfig


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """A ControlNet for a U-Net of this configuration.

    hint_channels: of the picture. hint_widths: channels of the network that reads it, which halves the size
        between two of them; the picture has 2 ** (len(hint_widths) - 1) times the latent's size.
    global_pool: average each residual over all pixels ("shuffle"); it then acts on the conditional half of
        guidance only.
    """

    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    global_pool: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("controlnet", self, "hint_channels", 1, MAX_SIZE)
        require_sizes("controlnet", self, "hint_widths", low=1)
        require_bool("controlnet", self, "global_pool")

    @property
    def hint_factor(self) -> int:
        """The size of the hint relative to that of the latent."""
        return int(2 ** (len(self.hint_widths) - 1))

    @property
    def unet(self) -> UNetConfig:
        """The configuration of the U-Net that it was made for, with out_channels unknown."""
        return UNetConfig(**{field.name: getattr(self, field.name) for field in fields(UNetConfig)})
