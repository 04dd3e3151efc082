"""Perturbed-attention guidance: away from what the network predicts with broken self-attention.

    guided = CFG + pag_scale * (cond - perturbed)

In the perturbed prediction, some self-attentions return the projected value of each pixel: every pixel
attends to itself alone. Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention
Guidance" (arXiv:2403.17377, equation 15).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Network
from ldm_core.unet.network import unet_of
from ldm_core.unet.transformer import SelfAttention, TransformerBlock


@dataclass(frozen=True)
class PerturbedAttention:
    """Classifier-free guidance and perturbed-attention guidance together; the latter also without the former.

    model: a `LatentDiffusion` or its U-Net, the one that the sampler evaluates. scale: of the perturbation; 0
    is `guidance` alone. layers: prefixes of the names of the U-Net's modules whose self-attentions are
    perturbed, such as "mid" or "up.1.blocks.0". adaptive: the scale falls by this much per timestep,
    from `scale` at timestep 1000, down to 0. guidance: classifier-free guidance, to which it is added.
    Raises ValueError for a model without such a self-attention, and for scales that are not finite.
    """

    model: Any = field(repr=False)
    scale: float = 3.0
    layers: Sequence[str] = ("mid",)
    adaptive: float = 0.0
    guidance: ClassifierFreeGuidance = field(default_factory=ClassifierFreeGuidance)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.adaptive)):
            raise ValueError(f"scale and adaptive must be finite, not {self.scale} and {self.adaptive}")
        _self_attentions(self.model, self.layers)

    def scale_at(self, t: float) -> float:
        """The scale at a timestep."""
        return max(0.0, self.scale - self.adaptive * (1000 - t)) if self.adaptive else self.scale

    def __call__(
        self,
        network: Network,
        x: Tensor,
        t: float,
        cond: Condition,
        uncond: Condition,
        scale: float,
        progress: float,
    ) -> Tensor:
        strength = self.scale_at(t)
        if strength == 0:
            return self.guidance(network, x, t, cond, uncond, scale, progress)
        low, high = self.guidance.interval
        if scale == 1.0 or not low <= progress <= high:
            guided = eps_cond = network(x, t, cond)
        else:
            eps_uncond, eps_cond = self.guidance.predictions(network, x, t, cond, uncond)
            guided = self.guidance.combine(eps_uncond, eps_cond, scale)
        with perturbed(self.model, self.layers):
            eps_perturbed = network(x, t, cond)
        return guided + strength * (eps_cond - eps_perturbed)


@contextmanager
def perturbed(model: Any, layers: Sequence[str] = ("mid",)) -> Iterator[None]:
    """A context manager in which self-attentions return their values, for calls from this thread alone."""
    owner = threading.get_ident()

    def values(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if threading.get_ident() != owner:
            return None
        attention: Any = module
        result: Tensor = attention.to_out(attention.to_v(args[0]))
        return result

    handles = [layer.register_forward_hook(values) for layer in _self_attentions(model, layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _self_attentions(model: Any, layers: Sequence[str]) -> list[nn.Module]:
    """The self-attentions of a U-Net within modules of these names. Raises ValueError if there is none."""
    unet = unet_of(model, "perturbed attention")
    found: list[nn.Module] = []
    for prefix in layers:
        count = len(found)
        for name, module in unet.named_modules():
            if not f"{name}.".startswith(f"{prefix}."):
                continue
            if isinstance(module, TransformerBlock) and not module.disable_self_attention:
                found.append(module.attn1)
            elif isinstance(module, SelfAttention):
                found.append(module.attn)
        if len(found) == count:
            raise ValueError(f"the U-Net has no self-attention in {prefix!r}; expected names such as 'mid'")
    return found
