"""Fixtures of the tests of the U-Net."""

from support.accelerated_networks import no_gradients, small, unet

__all__ = [
    "no_gradients",
    "small",
    "unet",
]
