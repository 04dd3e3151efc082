"""High resolution in two passes: draw small, enlarge, add noise, and draw the rest of the way again.

    sampler.txt2img(prompt, high_resolution=HighResolution(scale=2, strength=0.6))

A model draws objects of the size that it was trained on, so that a large picture in one pass has several of
them. The first pass, at that size, decides what there is; the second, SDEdit (Meng et al. 2022,
arXiv:2108.01073) of the enlarged result, adds detail. CompVis's code has no counterpart; web UIs call it
"hires fix".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.circular_padding import is_seamless, wrapped
from ldm_core.conditioners.text import TextConditioner
from ldm_core.control.coadapter import CoAdapterFuser, StyleAdapter
from ldm_core.control.control import Control
from ldm_core.model import LatentDiffusion
from ldm_core.noise import generators, randn
from ldm_core.schedulers import Scheduler
from ldm_core.schedulers.spacing import truncate
from ldm_core.start import Start, require_size
from ldm_core.support.limits import MAX_TIMESTEPS, is_number, is_whole
from ldm_core.support.printable import shown
from ldm_core.unet.windowed import WindowedUNet
from ldm_core.upscaling import require_memory
from ldm_core.windowed_model import with_windows
from ldm_core.windows import Windows

if TYPE_CHECKING:
    from ldm_core.request import Request

Enlarge = Literal["latent", "picture"]
MARGIN = 4  # pixels that a seamless picture is continued by, more than the interpolations read


@dataclass(frozen=True)
class HighResolution:
    """How a picture is enlarged and drawn again.

    scale: of height and width, at least 1; the result's must be sizes that the networks take.
    strength: of the second pass, in (0, 1], as in `img2img`: about strength * steps steps are run.
    enlarge: "latent": interpolate the latent (bilinear), which is blurred and needs a strength of about 0.5
        to become sharp. "picture": decode, interpolate the pixels (bicubic) and encode, which needs less;
        with a scheduler that adds no noise, this is `img2img` of the enlarged picture.
    steps: of the second pass; None: those of the first.
    windows: of the second pass, in latent pixels, as in `ldm_core.windowed`, where memory is short.

    Raises ValueError for other values.
    """

    scale: float = 2.0
    strength: float = 0.6
    enlarge: Enlarge = "latent"
    steps: int | None = None
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if not is_number(self.scale) or self.scale < 1:
            raise ValueError(
                f"high_resolution: scale must be a number of at least 1, not {shown(self.scale)}"
            )
        if not is_number(self.strength) or not 0 < self.strength <= 1:
            raise ValueError(f"high_resolution: strength must be in (0, 1], not {shown(self.strength)}")
        if self.enlarge not in get_args(Enlarge):
            raise ValueError(
                f"high_resolution: enlarge must be 'latent' or 'picture', not {shown(self.enlarge)}"
            )
        if self.steps is not None and not is_whole(self.steps, 1, MAX_TIMESTEPS):
            raise ValueError(
                f"high_resolution: steps must be a positive int or None, not {shown(self.steps)}"
            )
        if self.windows is not None and not isinstance(self.windows, Windows):
            raise ValueError(
                f"high_resolution: windows must be ldm_core.Windows or None, not {shown(self.windows)}"
            )


@dataclass(frozen=True)
class SecondPass:
    """The second pass of a run, checked before the first. size: height and width of the result."""

    model: LatentDiffusion
    plan: HighResolution
    size: tuple[int, int]
    request: Request

    def begin(self, scheduler: Scheduler, latent: Tensor, pixels: Tensor | None) -> Request:
        """The request of the second pass.

        latent: of the first pass (B, C, h, w). pixels: its images (B, 3, H, W) in [0, 1], to be enlarged in
            place of the latent.
        """
        request, plan, model = self.request, self.plan, self.model
        assert isinstance(request.seed, Sequence)
        wraps, draws = is_seamless(model), generators(request.seed)
        f = model.config.autoencoder.downsampling
        small = (self.size[0] // f, self.size[1] // f)
        noise = randn((*latent.shape[:2], *small), draws).to(
            latent
        )  # before the encoder draws, as in img2img
        if pixels is None:
            x0 = enlarged(latent, small, "bilinear", wraps)
        else:
            images = enlarged(pixels, self.size, "bicubic", wraps).clamp(0, 1) * 2 - 1
            rows = [model.encode_image(images[k : k + 1], [draw]) for k, draw in enumerate(draws)]
            x0 = torch.cat(rows).to(latent)
        pairs = request.timesteps
        pairs = scheduler.timesteps(model.noise_schedule, request.steps) if pairs is None else list(pairs)
        start, pairs = truncate(pairs, plan.strength)
        begun = model.noise_schedule.add_noise(x0, noise, start)
        height, width = self.size
        return replace(request, latent=begun, timesteps=pairs, height=height, width=width)

    def recorded(self, result: Any, recipes: Sequence[dict[str, Any]]) -> Any:
        """The result of the second pass, with recipes of the first, whose settings give it again."""
        if not isinstance(result, Tensor):
            for picture, recipe in zip(result, recipes):
                picture.info["recipe"] |= recipe | {"high_resolution": repr(self.plan)}
        return result


def second_pass(model: LatentDiffusion, request: Request, start: Start, batch_size: int | None) -> SecondPass:
    """Check the second pass of a request, whose first pass begins at `start`.

    Raises ValueError for a size that the networks do not take or that needs more memory than there is, a
    mask, and a condition that determines the size.
    """
    plan = request.high_resolution
    if not isinstance(plan, HighResolution):
        raise ValueError(f"expected high_resolution as ldm_core.HighResolution, not {shown(plan)}")
    if request.mask is not None:
        raise ValueError("high_resolution is for txt2img and img2img, and takes no mask")
    is_text = isinstance(model.conditioner, TextConditioner)
    if start.cond.concat is not None and not (is_text and request.condition is None):
        raise ValueError("high_resolution needs a condition without a size; this one is joined to the latent")
    height, width = (_whole(side * plan.scale) for side in start.size)
    require_size(model.config, height, width)
    if plan.windows is not None:
        model = with_windows(model, plan.windows)
    if not isinstance(model.unet, WindowedUNet):
        f, rows = model.config.autoencoder.downsampling, len(start.seeds)
        require_memory(model, min(rows, batch_size or rows), height // f, width // f)
    again = replace(
        request,
        high_resolution=None,
        seed=start.seeds,
        steps=plan.steps or request.steps,
        noise=None,
        latent=None,
        image=None,
        strength=1.0,
        height=None,
        width=None,
        controls=[_with_larger_hint(control, (height, width), start.size) for control in _controls(request)],
    )
    return SecondPass(model, plan, (height, width), again)


def _controls(request: Request) -> Sequence[Control]:
    controls = request.controls
    return [controls] if isinstance(controls, Control) else controls


def _whole(side: float) -> Any:
    """The side as an int if it is whole; the check of sizes refuses another one."""
    return round(side) if math.isclose(side, round(side)) else side


def _with_larger_hint(control: Control, size: tuple[int, int], before: tuple[int, int]) -> Control:
    """A control whose hint has the size (height, width) of the second pass."""
    if isinstance(control.net, StyleAdapter) or size == before:
        return control
    if isinstance(control.net, CoAdapterFuser):
        raise ValueError("high_resolution cannot enlarge the hints of a CoAdapter fuser")
    return replace(control, hint=_resized(control.hint, size))


def _resized(hint: Any, size: tuple[int, int]) -> Any:
    if isinstance(hint, Tensor):
        batch = hint if hint.ndim == 4 else hint[None]
        return F.interpolate(batch.float(), size=size, mode="nearest")
    if isinstance(hint, Sequence):
        return [_resized(one, size) for one in hint]
    return hint.resize((size[1], size[0]))


def enlarged(x: Tensor, size: tuple[int, int], mode: str, wraps: bool = False) -> Tensor:
    """x (B, C, h, w) interpolated to `size` (rows, columns). wraps: x continues at its opposite edges."""
    if not wraps:
        return F.interpolate(x, size=size, mode=mode, align_corners=False)
    # Continued by whole pixels of the result: the same rows as in the infinite picture.
    margins = [_margin(small, large) for small, large in zip(x.shape[2:], size)]
    added = [margin * large // small for margin, small, large in zip(margins, x.shape[2:], size)]
    whole = [large + 2 * extra for large, extra in zip(size, added)]
    result = F.interpolate(wrapped(x, *margins), size=whole, mode=mode, align_corners=False)
    return result[..., added[0] : added[0] + size[0], added[1] : added[1] + size[1]]


def _margin(small: int, large: int) -> int:
    """Pixels to continue a side by: at least MARGIN if it has as many, and whole pixels of the large side."""
    unit = small // math.gcd(small, large)
    return min(unit * math.ceil(MARGIN / unit), small)
