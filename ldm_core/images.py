"""Pictures in and out: PIL images of any mode to tensors, and tensors to PIL images.

At its border the package takes and gives PIL images, or (B, 3, H, W) in [0, 1]; inside, the autoencoder
works on [-1, 1], as it was trained.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Any  # a PIL image, a tensor (3, H, W) or (B, 3, H, W) in [0, 1], or a list of either


# Pillow knows more formats. Some of their readers start other programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 178_956_970  # 0.5 GiB as RGB. Pillow refuses more too, unless a program has changed its limit.
MAX_BYTES = 2**31  # a generous limit


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """Pillow raises anything for damaged files: OSError, SyntaxError, struct.error, IndexError …"""
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the picture cannot be decoded ({reason})") from error


def open_picture(source: str | os.PathLike[str] | bytes) -> Image:
    """A picture in a file, or in a file's bytes, decoded and upright; of several frames the first.

    It is safe for files from strangers: only the formats in FORMATS are read, and size is checked before
    anything is decoded. A damaged EXIF block is ignored: the picture is then as it is stored.
    Raises OSError for a file that cannot be opened, is larger than MAX_BYTES or is not a regular file, and
    ValueError for one that is not a picture in these formats, is damaged, or has more than MAX_PIXELS pixels.
    """
    from PIL import Image as PIL

    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, MAX_BYTES) as file:
        try:
            with _damage_as_value_error(), PIL.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    raise ValueError(f"the picture has {pixels:,} pixels, more than {MAX_PIXELS:,}")
                return upright(image)
        except ValueError as error:
            if isinstance(error.__cause__, PIL.UnidentifiedImageError):
                raise ValueError(f"not a picture of the formats {', '.join(FORMATS)}") from None
            raise


@_damage_as_value_error()
def upright(image: Image) -> Image:
    """A copy of a PIL image, turned as its EXIF data says. Where that is damaged, it is ignored.

    Raises ValueError for a picture that cannot be decoded.
    """
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are fine, and Pillow raises anything for damaged EXIF data
        return image.copy()


@_damage_as_value_error()
def to_rgb(image: Image) -> Image:
    """Any PIL image upright and as 8-bit RGB: EXIF rotation applied, transparency laid on white.

    Raises ValueError for a picture that cannot be decoded.
    """
    from PIL import Image as PIL

    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return PIL.alpha_composite(PIL.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


@_damage_as_value_error()
def to_grey(mask: Image) -> Image:
    """The same as 8-bit grey, with transparency laid on black."""
    from PIL import Image as PIL

    mask = upright(mask)
    if mask.mode in ("LA", "RGBA", "PA") or "transparency" in mask.info:
        rgba = mask.convert("RGBA")
        mask = PIL.alpha_composite(PIL.new("RGBA", rgba.size, "black"), rgba)
    elif mask.mode.startswith("I") or mask.mode == "F":
        mask = _to_8_bit(mask)
    return mask.convert("L")


def _to_8_bit(image: Image) -> Image:
    """16- and 32-bit grey to 8 bits; PIL's own conversion clips at 255 and so turns them white."""
    import numpy as np
    from PIL import Image as PIL

    values = np.asarray(image).astype(np.float64)
    if image.mode != "F":
        values = values / 257.0  # 65535 becomes 255
    return PIL.fromarray(values.round().clip(0, 255).astype(np.uint8))


def image_to_tensor(image: ImageInput) -> Tensor:
    """One or several images of one size to (B, 3, H, W), float32 in [0, 1] on the CPU.

    Raises ValueError for other types, tensors of another shape, values outside [0, 1], several sizes, or a
    picture that cannot be decoded.
    """
    if isinstance(image, Tensor):
        tensor = image if image.ndim == 4 else image[None]
        if tensor.ndim != 4 or tensor.shape[1] != 3:
            raise ValueError(f"expected an image of (B, 3, H, W) or (3, H, W), got {tuple(image.shape)}")
        return _within_range(tensor, "image")
    if isinstance(image, Sequence) and not isinstance(image, str) and len(image) > 0:
        return _of_one_size([image_to_tensor(one) for one in image], "images")
    _require_pil(image, "image")
    import numpy as np

    pixels = np.array(to_rgb(image))  # (H, W, 3), uint8
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _within_range(tensor: Tensor, what: str) -> Tensor:
    tensor = tensor.detach().cpu().float()
    if tensor.numel() and not (tensor.min() >= 0 and tensor.max() <= 1):
        found = f"{float(tensor.min()):.3g} to {float(tensor.max()):.3g}"
        raise ValueError(f"expected {what} values in [0, 1], got {found}")
    return tensor


def _of_one_size(tensors: list[Tensor], what: str) -> Tensor:
    sizes = {tuple(tensor.shape[2:]) for tensor in tensors}
    if len(sizes) > 1:
        raise ValueError(f"expected {what} of one size (H, W), got {sorted(sizes)}")
    return torch.cat(tensors)


def mask_to_tensor(mask: ImageInput) -> Tensor:
    """A mask, or several, to (B, 1, H, W), float32 in [0, 1]: white, 1, is what is repainted.

    A tensor may be (H, W), (1, H, W) or (B, 1, H, W) in [0, 1]; transparency in a picture counts as black.
    Raises ValueError as `image_to_tensor` does.
    """
    if isinstance(mask, Tensor):
        tensor = mask[None, None] if mask.ndim == 2 else mask[None] if mask.ndim == 3 else mask
        if tensor.ndim != 4 or tensor.shape[1] != 1:
            raise ValueError(f"expected a mask of (H, W), (1, H, W) or (B, 1, H, W), got {tuple(mask.shape)}")
        return _within_range(tensor, "mask")
    if isinstance(mask, Sequence) and not isinstance(mask, str) and len(mask) > 0:
        return _of_one_size([mask_to_tensor(one) for one in mask], "masks")
    _require_pil(mask, "mask")
    import numpy as np

    return torch.from_numpy(np.array(to_grey(mask)))[None, None].float() / 255


def _require_pil(value: Any, what: str) -> None:
    from PIL import Image as PIL

    if not isinstance(value, PIL.Image):
        raise ValueError(f"expected the {what} as a PIL image or a tensor, not {type(value).__name__}")


def tensor_to_pil(images: Tensor) -> list[Image]:
    """(B, 3, H, W) in [0, 1] to 8-bit RGB images, rounded to the nearest of the 256 levels."""
    from PIL import Image as PIL

    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [PIL.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]
