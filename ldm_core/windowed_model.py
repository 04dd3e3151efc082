"""A model that samples pictures larger than those of its training, in overlapping windows.

sampler = Sampler(windowed(model, size=64, stride=32))
sampler.txt2img("a mountain range", width=2048)
"""

from __future__ import annotations

from dataclasses import replace

from ldm_core.autoencoder.tiling import WindowedAutoencoder
from ldm_core.conditioners.layout import Layout
from ldm_core.conditioners.windowed_layout import WindowedLayout
from ldm_core.model import LatentDiffusion
from ldm_core.unet.windowed import WindowedUNet
from ldm_core.windows import Size, Weights, Windows


def windowed(
    model: LatentDiffusion,
    *,
    size: Size | None = None,
    stride: Size | None = None,
    weights: Weights = "pyramid",
    tie_breaker: bool = False,
    wrap: bool = False,
    batch_size: int = 1,
) -> LatentDiffusion:
    """The model with a U-Net and an autoencoder that work in windows, and need the memory of a window.

    size, stride: in latent pixels, for both axes or (rows, columns); a size is a multiple of the U-Net's
        downsampling factor, by default the training resolution.
    weights, tie_breaker, wrap: as in `ldm_core.Windows`; "equal" weights are MultiDiffusion's, and apply to
        the U-Net alone, since in pixels they leave visible edges.
    batch_size: the number of windows per evaluation of the U-Net, each with all rows of the sampler's batch.

    A layout is cropped to each window. All other contexts and vectors are the same for all windows. Raises
    ValueError for sizes that the U-Net does not take, and for a model that is windowed already.
    """
    if size is None:
        size = max(model.config.image_size // model.config.autoencoder.downsampling, 1)
    return with_windows(model, Windows(size, stride, weights, tie_breaker, wrap), batch_size)


def with_windows(model: LatentDiffusion, windows: Windows, batch_size: int = 1) -> LatentDiffusion:
    """`windowed` with given windows."""
    if isinstance(model.unet, WindowedUNet):
        raise ValueError(f"this model already works in windows of {model.unet.windows.sizes}")
    unit = model.config.unet.downsampling
    if any(size % unit for size in windows.sizes):
        raise ValueError(f"windows must be multiples of {unit} latent pixels, not {windows.sizes}")
    conditioner = model.conditioner
    if isinstance(conditioner, Layout):
        conditioner = WindowedLayout(conditioner)
    context_for = getattr(conditioner, "for_window", None)
    decoded = replace(windows, weights="pyramid") if windows.weights == "equal" else windows
    return replace(
        model,
        conditioner=conditioner,
        unet=WindowedUNet(model.unet, windows, batch_size=batch_size, context_for=context_for),
        autoencoder=WindowedAutoencoder(
            model.autoencoder, decoded, factor=model.config.autoencoder.downsampling
        ),
    )
