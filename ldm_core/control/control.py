"""A control: a network, its hint, and how strongly and when it acts.

    net = ldm_core.load_control("control_v11p_sd15_canny.pth", model=model)
    sampler.txt2img("a house", controls=[ldm_core.Control(net, edges)])

Residuals are multiplied by `strength`. Guess mode, for prompts that say nothing, weakens the fine levels and
leaves the unconditional half of guidance without control: residual i of n times 0.825^(n - i) in the
ControlNet author's code, or 10^(i / n - 1) in diffusers'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.preprocessing import preprocess
from ldm_core.control.coadapter import KINDS, CoAdapterFuser, StyleAdapter
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.t2i_adapter import T2IAdapter
from ldm_core.images import image_to_tensor, mask_to_tensor
from ldm_core.nn.kept_context import KeptContext
from ldm_core.unet.residuals import Residuals

Guess = bool | Literal["original", "diffusers"]
NETWORKS = (ControlNet, T2IAdapter, StyleAdapter, CoAdapterFuser)
GUESS = 0.825  # from one residual to the next, in the ControlNet author's code


@dataclass(frozen=True)
class Encoded:
    """What a hint is to its network, the same for all steps of a run; one row per image.

    hint: a ControlNet's features. features: those of T2I-Adapters, by level. tokens: of a style.
    """

    hint: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None

    def rows(self, rows: Tensor) -> Encoded:
        """These rows of the images. rows: LongTensor of their numbers."""
        return Encoded(
            None if self.hint is None else self.hint[rows],
            tuple(feature[rows] for feature in self.features),
            None if self.tokens is None else self.tokens[rows],
        )

    @property
    def count(self) -> int:
        """The number of images."""
        return next(len(one) for one in (self.hint, self.tokens, *self.features) if one is not None)


@dataclass(frozen=True, eq=False)
class Control:
    """A network of `ldm_core.load_control` and its hint.

    hint: for a ControlNet or a T2I-Adapter, a picture of the image's size: a PIL image, or a tensor
        (B, C, H, W) in [0, 1] (pixels of an inpainting ControlNet are -1 where they are masked); one, or one
        per prompt. For a style adapter, a picture, with `clip`, or CLIP's last hidden states (B, N, width).
        For a CoAdapter fuser, a mapping of kinds ("sketch", "depth", …) to Controls.
    strength: a factor of all that the network adds. 0 is the plain U-Net.
    start, end: the share of the steps in which it acts, 0 … 1. In other steps it is not evaluated.
    guess: False, True or "original", or "diffusers"; of a ControlNet.
    mid_only: use the residual of the middle block only; of a ControlNet.
    clip: the `CLIPImageEncoder` (or a `CLIP`) that a style adapter was made for.

    Raises ValueError for other values.
    """

    net: Any
    hint: Any
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: Guess = False
    mid_only: bool = False
    clip: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, NETWORKS):
            raise ValueError(f"expected a network of load_control, not {type(self.net).__name__}")
        if not _is_number(self.strength):
            raise ValueError(f"a control's strength must be a finite number, not {self.strength!r:.40}")
        share = (self.start, self.end)
        if not all(map(_is_number, share)) or not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start and end must be in [0, 1], in this order, not {share!r:.60}")
        if self.guess not in (False, True, "original", "diffusers"):
            raise ValueError(f"guess must be True, False or 'diffusers', not {self.guess!r:.40}")
        if not isinstance(self.net, ControlNet) and (self.guess or self.mid_only):
            raise ValueError(f"guess and mid_only apply to a ControlNet, not to a {type(self.net).__name__}")
        if isinstance(self.net, StyleAdapter | CoAdapterFuser) and share != (0, 1):
            raise ValueError("a style and fused adapters act in all steps: leave start at 0 and end at 1")
        if isinstance(self.net, CoAdapterFuser):
            _check_fused(self.hint)

    @property
    def conditional_only(self) -> bool:
        """Whether it acts on the conditional half of guidance only."""
        return bool(self.guess) or getattr(self.net.config, "global_pool", False)

    def acts(self, index: int, total: int) -> bool:
        """Whether it acts in a step, from 0, of a run of `total` steps."""
        if self.strength == 0:
            return False
        if isinstance(self.net, T2IAdapter):  # as the authors' `cond_tau`
            return index / total >= self.start and total - 1 - index >= int((1 - self.end) * total)
        return index / total >= self.start and (index + 1) / total <= self.end

    def __call__(
        self, x: Tensor, t: Tensor | float, context: Tensor | None = None, y: Tensor | None = None
    ) -> Residuals:
        """The residuals for `unet(x, t, context, residuals=…)`, on all rows, whatever start and end are.

        x, t, context, y: as in `UNet.forward`. The rows of the hint are repeated for more rows of x.
        Raises ValueError for inconsistent shapes, and for a style, which is no residual.
        """
        if self.strength == 0:
            return Residuals()
        encoded = self.encode((x.shape[2], x.shape[3]))
        if encoded.count > len(x) or len(x) % encoded.count:
            raise ValueError(f"expected one hint, or one per image ({len(x)}), got {encoded.count}")
        return self.residuals(encoded.rows(torch.arange(len(x)) % encoded.count), x, t, context, y)

    def encode(self, size: tuple[int, int]) -> Encoded:
        """What the network makes of the hint, one row for each. size: h, w of the latent.

        Raises ValueError for hints of another type, size or range.
        """
        net = self.net
        weight = next(net.parameters())
        if isinstance(net, CoAdapterFuser):
            conditions: dict[str, Any] = {}
            for kind, control in self.hint.items():
                inner = control.encode(size)
                values = inner.features if inner.tokens is None else inner.tokens
                conditions[kind] = _scaled(values, control.strength)
            features, tokens = net(conditions)
            return Encoded(features=features, tokens=tokens)
        if isinstance(net, StyleAdapter):
            return Encoded(tokens=net(self._patches(weight)))
        pixels = self._pixels(net, size).to(weight.device, weight.dtype)
        if isinstance(net, ControlNet):
            return Encoded(hint=net.encode_hint(pixels))
        return Encoded(features=net(pixels))

    def residuals(
        self,
        encoded: Encoded,
        x: Tensor,
        t: Tensor | float,
        context: Tensor | KeptContext | None,
        y: Tensor | None = None,
    ) -> Residuals:
        """The weighted residuals for x, in its dtype; encoded: one row per row of x."""
        net = self.net
        if isinstance(net, ControlNet):
            weight = next(net.parameters())
            if isinstance(context, KeptContext) and context.tensor.dtype != weight.dtype:
                context = context.tensor
            if isinstance(context, Tensor):
                context = context.to(weight)
            assert encoded.hint is not None
            found = net(x.to(weight), t, context, encoded.hint, y, is_encoded=True)
            found = self._weighted(found)
        elif encoded.features:
            found = Residuals(features=encoded.features) * self.strength
        else:
            raise ValueError("a style adds tokens to the context and no residuals: pass it to the sampler")
        return found.map(lambda residual: residual.to(x))

    def _weighted(self, found: Residuals) -> Residuals:
        """A ControlNet's residuals times strength, as the guess mode, pooling and mid_only want them."""
        assert found.middle is not None
        n, pools = len(found.skips), self.net.config.global_pool
        factors = [float(self.strength)] * (n + 1)
        if self.guess == "diffusers" and not pools:
            factors = [self.strength * 10 ** (i / n - 1) for i in range(n + 1)]
        elif self.guess and not pools:
            factors = [self.strength * GUESS ** (n - i) for i in range(n + 1)]
        scaled = [one * factor for one, factor in zip((*found.skips, found.middle), factors)]
        if pools:
            scaled = [one.mean(dim=(2, 3), keepdim=True) for one in scaled]
        return Residuals(() if self.mid_only else tuple(scaled[:-1]), scaled[-1])

    def _pixels(self, net: ControlNet | T2IAdapter, size: tuple[int, int]) -> Tensor:
        """The hint as (B, C, H, W), checked against the latent's size."""
        channels = net.config.hint_channels
        f = net.config.hint_factor if isinstance(net, ControlNet) else net.config.downsampling
        hint = self.hint
        if isinstance(hint, Tensor):
            pixels = _checked_tensor(hint, channels)
        elif channels == 3:
            pixels = image_to_tensor(hint)
        elif channels == 1:
            pixels = mask_to_tensor(hint)
        else:
            raise ValueError(f"this control's hint has {channels} channels: pass it as a tensor")
        wanted = (f * size[0], f * size[1])
        if tuple(pixels.shape[2:]) != wanted:
            raise ValueError(
                f"expected a hint of the image's size, {wanted[1]}×{wanted[0]} pixels, got "
                f"{pixels.shape[3]}×{pixels.shape[2]}"
            )
        return pixels

    def _patches(self, weight: Tensor) -> Tensor:
        """CLIP's last hidden states of the hint."""
        if isinstance(self.hint, Tensor) and self.hint.ndim == 3 and self.hint.shape[0] != 3:
            return self.hint.to(weight)
        encoder = getattr(self.clip, "image_encoder", self.clip)
        if not isinstance(encoder, CLIPImageEncoder):
            raise ValueError(
                "a style adapter needs clip=, the CLIP image encoder that it was made for (ViT-L/14), or a "
                f"hint of its last hidden states (B, N, {self.net.config.width})"
            )
        own = next(encoder.parameters())
        pixels = preprocess(self.hint, encoder.config, crop="transformers")
        return encoder.hidden_states(pixels.to(own)).to(weight)


def _check_fused(hint: Any) -> None:
    """Raise ValueError unless these are the controls of a fuser, by their kinds."""
    if not isinstance(hint, Mapping) or not hint:
        raise ValueError(f"a fuser's hint is a mapping of kinds to Controls, not {type(hint).__name__}")
    for kind, control in hint.items():
        if kind not in KINDS or not isinstance(control, Control):
            raise ValueError(f"expected Controls by kinds of {', '.join(KINDS)}, got {kind!r:.40}")
        wanted = StyleAdapter if kind == "style" else T2IAdapter
        if not isinstance(control.net, wanted) or (control.start, control.end) != (0, 1):
            raise ValueError(f"expected a {wanted.__name__} for all steps as {kind!r}")


def _scaled(values: Any, strength: float) -> Any:
    return values * strength if isinstance(values, Tensor) else tuple(one * strength for one in values)


def _checked_tensor(hint: Tensor, channels: int) -> Tensor:
    """A hint as (B, C, H, W). Raises ValueError for another shape or range."""
    pixels = hint if hint.ndim == 4 else hint[None]
    if pixels.ndim != 4 or pixels.shape[1] != channels or not pixels.is_floating_point() or not len(pixels):
        raise ValueError(f"expected a hint of (B, {channels}, H, W), got {tuple(hint.shape)} of {hint.dtype}")
    inside = (pixels >= 0) & (pixels <= 1) | (pixels == -1)
    if not bool(inside.all()):
        low, high = float(pixels.min()), float(pixels.max())
        raise ValueError(
            f"expected a hint's values in [0, 1] (or -1 where an inpainting hint is masked), got {low:.3g} "
            f"to {high:.3g}"
        )
    return pixels


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
