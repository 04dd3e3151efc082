"""A map of the class of every pixel as a Condition: its small version is joined to the U-Net's input.

The semantic synthesis of the latent diffusion paper (arXiv:2112.10752, section 4.3.2). CompVis's counterpart
is `SpatialRescaler` of `ldm.modules.encoders.modules`: the one-hot map (B, K, H, W) is halved n times,
bilinearly, and a 1x1 convolution maps its K channels to C':

    c = W halve^n(onehot)  =  halve^n(W onehot)

Both are linear and act on different axes, so the convolution comes first here, as a look-up of each pixel's
class. The one-hot map, 60 times the result's channels, is then never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.images import MAX_PIXELS
from ldm_core.support.limits import MAX_LEVELS, MAX_ROWS, MAX_SIZE, is_number, is_whole, require_whole
from ldm_core.support.printable import few, shown


@dataclass(frozen=True)
class SemanticMapConfig:
    """classes: of the map. channels: of the result. stages: number of halvings, log2 of f."""

    classes: int = 182
    channels: int = 3
    stages: int = 2

    def __post_init__(self) -> None:
        part = "semantic map"
        require_whole(part, self, "classes", 1, MAX_ROWS)
        require_whole(part, self, "channels", 1, MAX_SIZE)
        require_whole(part, self, "stages", 0, MAX_LEVELS)

    @property
    def concat_channels(self) -> int:
        """The channels that are joined to the latent."""
        return self.channels


class SpatialRescaler(nn.Module):
    """Classes, LongTensor (B, H, W), to (B, channels, H / 2^stages, W / 2^stages), sizes rounded down."""

    def __init__(self, config: SemanticMapConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=False)

    def forward(self, classes: Tensor) -> Tensor:
        """LongTensor (B, H, W) -> (B, channels, H / 2^stages, W / 2^stages)."""
        table = self.channel_mapper.weight[:, :, 0, 0].T  # (K, C')
        x = F.embedding(classes, table).permute(0, 3, 1, 2)  # (B, H, W, C') -> (B, C', H, W)
        for _ in range(self.config.stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return x


@dataclass(frozen=True)
class SemanticMap:
    """Maps of classes as a Condition with concat (B, channels, H / 2^stages, W / 2^stages).

    Inputs: an integer tensor (B, H, W) or (H, W) of classes; a PIL image of mode "P", "L" or "I" whose
    values are the classes, or a list of such images of one size; or a one-hot float tensor (B, K, H, W).
    """

    network: SpatialRescaler

    unconditional: ClassVar[None] = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return {"conditioner": self.network}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(self.classes(inputs, name))

    def latent_size(self, inputs: Any) -> tuple[int, int]:
        """Rows and columns (h, w) of the result."""
        height, width = self.classes(inputs).shape[1:]
        scale = 2**self.network.config.stages
        return height // scale, width // scale

    def __call__(self, inputs: Any) -> Condition:
        device = self.network.channel_mapper.weight.device
        return Condition(concat=self.network(self.classes(inputs).to(device)))

    def classes(self, inputs: Any, name: str = "inputs") -> Tensor:
        """The inputs as classes, LongTensor (B, H, W). Raises ValueError for other inputs."""
        config = self.network.config
        if isinstance(inputs, Tensor):
            classes = _of_tensor(inputs, config.classes, name)
        else:
            maps = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
            classes = _of_pictures(maps, name)
        smallest = 2**config.stages
        if len(classes) == 0 or min(classes.shape[1:]) < smallest:
            raise ValueError(
                f"expected {name} as maps of at least {smallest} x {smallest} pixels, got "
                f"{tuple(classes.shape)}"
            )
        unknown = classes[(classes < 0) | (classes >= config.classes)].unique()
        if len(unknown):
            found = few([str(value) for value in unknown.tolist()])
            raise ValueError(f"expected classes in 0..{config.classes - 1} in {name}, got also {found}")
        return classes


def _of_tensor(inputs: Any, classes: int, name: str) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise ValueError(f"expected {name} as a tensor, got {type(inputs).__name__}")
    whole = not inputs.is_floating_point() and not inputs.is_complex() and inputs.dtype != torch.bool
    if whole and inputs.ndim in (2, 3):
        return (inputs if inputs.ndim == 3 else inputs[None]).long()
    if not inputs.is_floating_point() or inputs.ndim != 4:
        raise ValueError(
            f"expected {name} as an integer tensor (B, H, W) of classes, or a one-hot float tensor "
            f"(B, {classes}, H, W), got {tuple(inputs.shape)} of {inputs.dtype}"
        )
    if inputs.shape[1] != classes:
        raise ValueError(f"expected a one-hot map of {classes} channels, got {inputs.shape[1]}")
    is_one_hot = ((inputs == 0) | (inputs == 1)).all() and (inputs.sum(dim=1) == 1).all()
    if not bool(is_one_hot):
        raise ValueError(f"expected {name} to be one-hot: one 1 at every pixel, and 0 in all other channels")
    return inputs.argmax(dim=1)


def _of_pictures(maps: Sequence[Any], name: str) -> Tensor:
    import numpy as np
    from PIL import Image as PIL

    for picture in maps:
        if not isinstance(picture, PIL.Image):
            raise ValueError(
                f"expected {name} as a tensor of classes, or as PIL images whose values are the classes, "
                f"got {type(picture).__name__}"
            )
        if picture.mode not in ("P", "L", "I", "I;16"):
            raise ValueError(
                f"expected {name} as images of one class number per pixel (mode P or L), got the mode "
                f"{picture.mode}"
            )
    sizes = sorted({f"{picture.width}x{picture.height}" for picture in maps})
    if len(sizes) != 1:
        raise ValueError(f"expected {name} as maps of one size, got {few(sizes) or 'none'}")
    return torch.stack([torch.from_numpy(np.array(picture).astype(np.int64)) for picture in maps])


Shape = tuple[int, Sequence[tuple[float, float]]]  # a class and its corners (x, y) in [0, 1]


def paint(height: int, width: int, shapes: Sequence[Shape], background: int = 0) -> Tensor:
    """A map made of shapes, each over those before it: LongTensor (1, height, width).

    shapes: (class, corners) with corners (x, y) in [0, 1], x to the right and y down. Two corners are
        opposite corners of a rectangle, three or more those of a polygon.
    Raises ValueError for other shapes.
    """
    from PIL import Image as PIL
    from PIL import ImageDraw

    if not (is_whole(height, 1, MAX_SIZE) and is_whole(width, 1, MAX_SIZE) and height * width <= MAX_PIXELS):
        raise ValueError(
            f"expected a height and a width in 1..{MAX_SIZE} with at most {MAX_PIXELS:,} pixels, got "
            f"{shown(height)} and {shown(width)}"
        )
    if not is_whole(background, 0, MAX_ROWS):
        raise ValueError(f"expected the background as a class in 0..{MAX_ROWS}, got {shown(background)}")
    canvas = PIL.new("I", (width, height), background)
    draw = ImageDraw.Draw(canvas)
    for label, points in map(_checked_shape, shapes):
        if len(points) == 2:
            (x0, x1), (y0, y1) = (sorted(values) for values in zip(*points))
            box = (round(x0 * width), round(y0 * height), round(x1 * width) - 1, round(y1 * height) - 1)
            if box[0] <= box[2] and box[1] <= box[3]:
                draw.rectangle(box, fill=label)
        else:
            draw.polygon([(x * (width - 1), y * (height - 1)) for x, y in points], fill=label)
    return _of_pictures([canvas], "shapes")


def _checked_shape(shape: Any) -> tuple[int, list[tuple[float, float]]]:
    try:
        label, corners = shape
        points = [(x, y) for x, y in corners]
    except (TypeError, ValueError):
        label, points = None, []
    inside = all(is_number(value) and 0 <= value <= 1 for point in points for value in point)
    if not (is_whole(label, 0, MAX_ROWS) and len(points) >= 2 and inside):
        raise ValueError(
            "expected a shape as (class, corners), with two or more corners (x, y) in [0, 1], got "
            f"{shown(shape)}"
        )
    return label, points


def colours(classes: Tensor) -> list[Any]:
    """Maps (B, H, W) of classes below 256 as PIL images of mode "P", one colour per class.

    The images' values are the classes, so they are valid inputs of `SemanticMap`, also from a PNG file.
    Raises ValueError for other classes.
    """
    import numpy as np
    from PIL import Image as PIL

    classes = _of_tensor(classes, 256, "classes")
    if not bool(((classes >= 0) & (classes < 256)).all()):
        raise ValueError("expected classes in 0..255, which one byte holds, got others")
    images = []
    for values in classes.cpu().numpy().astype(np.uint8):
        image = PIL.fromarray(values).convert("L")
        image.putpalette(_palette())
        images.append(image)
    return images


def _palette() -> list[int]:
    """256 RGB colours in one list. Consecutive classes differ by 0.38 of a turn in hue."""
    import colorsys

    tones = ((0.65, 0.95), (0.85, 0.7), (0.45, 0.8))
    rgb = [colorsys.hsv_to_rgb(k * 0.381966 % 1, *tones[k % 3]) for k in range(256)]
    return [round(255 * value) for colour in rgb for value in colour]
