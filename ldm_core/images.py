"""Conversion of PIL images of any mode to tensors, and of tensors to PIL images.

The public functions take and return PIL images or tensors (B, 3, H, W) in [0, 1]. The autoencoder works on
tensors in [-1, 1].
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Any  # a PIL image, a tensor (3, H, W) or (B, 3, H, W) in [0, 1], or a list of either


# Some of Pillow's readers for other formats start programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of their files
MAX_PIXELS = 178_956_970  # 0.5 GiB as RGB. Pillow has the same limit, but a program can change it.
MAX_BYTES = 2**31  # bytes of a file, far more than MAX_PIXELS need


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """Convert the many errors of Pillow for damaged files (SyntaxError, struct.error, …) to ValueError."""
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the picture cannot be decoded ({reason})") from error


def open_picture(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode the first frame of a picture file, or of its bytes, and rotate it upright.

    Safe for untrusted files: only the formats in FORMATS are read, and the size is checked before decoding. A
    damaged EXIF block is ignored, so that the picture keeps its stored orientation.
    Raises OSError for a file that cannot be opened, is larger than MAX_BYTES or is not a regular file, and
    ValueError for a file that has none of these formats, is damaged, or has more than `max_pixels` pixels.
    """
    from PIL import Image as PIL

    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, MAX_BYTES) as file:
        try:
            with _damage_as_value_error(), PIL.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise ValueError(f"the picture has {pixels:,} pixels, more than {max_pixels:,}")
                return upright(image)
        except ValueError as error:
            if isinstance(error.__cause__, PIL.UnidentifiedImageError):
                raise ValueError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
            raise


def picture_files(folder: Path) -> Iterator[Path]:
    """The files with one of the ENDINGS in a folder and its subfolders, except for hidden ones."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            yield path


@_damage_as_value_error()
def upright(image: Image) -> Image:
    """A copy of a PIL image, rotated according to its EXIF data. Damaged EXIF data are ignored.

    Raises ValueError for a picture that cannot be decoded.
    """
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data, for which Pillow raises many errors; the pixels are valid
        return image.copy()


@_damage_as_value_error()
def to_rgb(image: Image) -> Image:
    """Convert a PIL image to 8-bit RGB, rotated upright, with transparency composited on white.

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
    """Convert a PIL image to 8-bit grey, rotated upright, with transparency composited on black."""
    from PIL import Image as PIL

    mask = upright(mask)
    if mask.mode in ("LA", "RGBA", "PA") or "transparency" in mask.info:
        rgba = mask.convert("RGBA")
        mask = PIL.alpha_composite(PIL.new("RGBA", rgba.size, "black"), rgba)
    elif mask.mode.startswith("I") or mask.mode == "F":
        mask = _to_8_bit(mask)
    return mask.convert("L")


def _to_8_bit(image: Image) -> Image:
    """Convert 16- and 32-bit grey to 8 bits. PIL's conversion would clip most values to white."""
    import numpy as np
    from PIL import Image as PIL

    values = np.asarray(image).astype(np.float64)
    if image.mode != "F":
        values = values / 257.0  # 65535 becomes 255
    return PIL.fromarray(values.round().clip(0, 255).astype(np.uint8))


def image_to_tensor(image: ImageInput) -> Tensor:
    """Convert one or several images of one size to (B, 3, H, W), float32 in [0, 1] on the CPU.

    Raises ValueError for other types, tensors of another shape, values outside [0, 1], different sizes, or a
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
    pixels = tensor.shape[2] * tensor.shape[3]
    if pixels > MAX_PIXELS:
        raise ValueError(f"expected {what}s of at most {MAX_PIXELS:,} pixels, got {pixels:,}")
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
    """Convert one or several masks to (B, 1, H, W), float32 in [0, 1]. White (1) is repainted.

    A tensor may be (H, W), (1, H, W) or (B, 1, H, W) in [0, 1]. Transparent pixels of a picture count as
    black.
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
    """Convert (B, 3, H, W) in [0, 1] to 8-bit RGB images, rounded to the nearest level."""
    from PIL import Image as PIL

    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [PIL.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]
