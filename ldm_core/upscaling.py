"""Super-resolution in one call: the small pictures as a model takes them, and the result in their size.

Latent diffusion (arXiv:2112.10752, section 4.4) and Stable Diffusion's x4 upscaler. CompVis's counterpart is
the super-resolution notebook, and Stability AI's `scripts/streamlit/superresolution.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.conditioners.low_resolution import small_pictures
from ldm_core.config import LatentDiffusionConfig
from ldm_core.images import ImageInput
from ldm_core.model import LatentDiffusion
from ldm_core.task_types import Output, Prompt
from ldm_core.unet.windowed import WindowedUNet
from ldm_core.windowed_model import with_windows
from ldm_core.windows import Windows

# Feature maps as large as the decoder's largest that exist at once: the input of a residual block, and the
# input and output of its layer. The measured peak is that of 3 to 4.
DECODER_MAPS = 3


@dataclass(frozen=True)
class Upscaling:
    """What a sampler needs to enlarge pictures of `size` (h, w), and their sizes without padding."""

    model: LatentDiffusion
    inputs: Any
    unconditional: Any
    size: tuple[int, int]

    def cropped(self, result: Any, output: Output) -> Any:
        """The result of a sampler without the padding."""
        f = 1 if output == "latent" else self.model.config.autoencoder.downsampling
        height, width = (f * size for size in self.size)
        if isinstance(result, Tensor):
            return result[..., :height, :width]
        pictures = [picture.crop((0, 0, width, height)) for picture in result]
        for picture in pictures:
            picture.info["recipe"] |= {"height": height, "width": width}
        return pictures


def prepare_upscaling(
    model: LatentDiffusion,
    image: ImageInput,
    prompt: Prompt | None,
    negative_prompt: Prompt,
    noise_level: int | None,
    windows: Windows | None,
    batch_size: int | None,
) -> Upscaling:
    """Check the arguments of `Tasks.upscale` and pad the pictures. Raises ValueError as described there."""
    inputs_for = getattr(model.conditioner, "upscaling_inputs", None)
    if inputs_for is None:
        raise ValueError(
            "upscale requires a model for super-resolution ('bsr-sr') or an upscaler ('x4-upscaler'); this "
            f"model's conditioner is {type(model.conditioner).__name__}"
        )
    images = small_pictures(image, "image")
    if windows is not None:
        model = with_windows(model, windows)
    height, width = images.shape[2:]
    images = padded(images, model.config.unet.downsampling)
    inputs = inputs_for(images, prompt, noise_level)
    if not isinstance(model.unet, WindowedUNet):
        rows = model.conditioner.count(inputs)
        require_memory(model, min(rows, batch_size or rows), *images.shape[2:])
    if negative_prompt and model.conditioner.unconditional is None:
        raise ValueError("this model takes no prompts, got a negative_prompt")
    return Upscaling(model, inputs, negative_prompt or None, (height, width))


def padded(images: Tensor, unit: int) -> Tensor:
    """Pictures (B, C, h, w) continued at the right and bottom to multiples of `unit` pixels.

    By reflection, or by the last pixel in pictures that are too small for it.
    """
    height, width = images.shape[2:]
    down, right = -height % unit, -width % unit
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, down), mode=mode)


def memory_needed(config: LatentDiffusionConfig, rows: int, height: int, width: int, bytes_each: int) -> int:
    """Bytes that decoding latents (rows, C, h, w) needs: DECODER_MAPS of its largest feature maps.

    The decoder's maps at the size of the result are the largest of all networks.
    """
    part = config.autoencoder
    f = part.downsampling
    widths = [part.ch * mult for mult in part.ch_mult]
    # A level's first block takes the features of the coarser level, enlarged.
    largest = max(
        max(widths[level : level + 2]) * (f * height >> level) * (f * width >> level)
        for level in range(len(widths))
    )
    return DECODER_MAPS * rows * largest * bytes_each


def memory_of(device: torch.device) -> int | None:
    """The memory of a device in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_memory(model: LatentDiffusion, rows: int, height: int, width: int) -> None:
    """Raise ValueError if decoding latents of this size needs more memory than the device has."""
    weight = model.weight_of("autoencoder")
    needed = memory_needed(model.config, rows, height, width, weight.element_size())
    memory = memory_of(weight.device)
    if memory is not None and needed > memory:
        size = model.config.image_size // model.config.autoencoder.downsampling
        several = "" if rows == 1 else ", or use Sampler(batch_size=1)"
        raise ValueError(
            f"enlarging {rows} image(s) of {width}x{height} needs about {needed / 2**30:.1f} GiB at once, "
            f"the device has {memory / 2**30:.1f} GiB; pass windows=ldm_core.Windows({size}){several}"
        )
