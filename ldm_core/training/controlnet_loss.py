"""Trains a ControlNet: the loss of latent diffusion, with the control's residuals in a frozen U-Net.

    L = E_{z_0, y, c, eps, t} [ w_t || target - unet(x_t, t, tau(y), controlnet(x_t, t, tau(y), c)) ||^2 ]

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543),
equation 5. A new ControlNet (`ControlNet.of`) changes nothing, so the loss begins with the U-Net's own. The
paper replaces half of the prompts by the empty one (section 3.3), so that the hint alone must suffice. The
author's counterpart is `ControlLDM` in `cldm/cldm.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.control.controlnet import ControlNet
from ldm_core.model import LatentDiffusion
from ldm_core.training.diffusion_loss import DiffusionObjective
from ldm_core.training.objective import Batch, require_float32


class ControlNetObjective(DiffusionObjective):
    """Trains a ControlNet of a model, whose networks are frozen.

    Batches also have "hint" (B, hint_channels, H, W) in [0, 1], of the picture's size.
    condition_dropout: the probability of the empty prompt, in [0, 1]. options: as of `DiffusionObjective`.
    Raises ValueError for a ControlNet that was made for another U-Net, and for weights of 16 bits.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        controlnet: ControlNet,
        *,
        condition_dropout: float = 0.5,
        **options: Any,
    ) -> None:
        if not isinstance(controlnet, ControlNet):
            raise ValueError(f"expected a ControlNet, not {type(controlnet).__name__}")
        require_float32(controlnet, "controlnet")
        own, base = controlnet.config, model.config.unet
        for name in ("in_channels", "model_channels", "channel_mult", "context_dim"):
            if getattr(own, name) != getattr(base, name):
                raise ValueError(
                    f"this ControlNet was made for a U-Net with {name}={getattr(own, name)}, the model's has "
                    f"{getattr(base, name)}"
                )
        controlnet.requires_grad_(True)
        super().__init__(model, adapter=controlnet, condition_dropout=condition_dropout, **options)

    def predict(self, x: Tensor, t: Tensor, condition: Condition, batch: Batch) -> Tensor:
        """The U-Net's prediction with the residuals of the ControlNet. Needs "hint" in the batch."""
        if "hint" not in batch:
            raise ValueError(f"expected a batch with 'hint', got {', '.join(sorted(batch))}")
        assert self.adapter is not None
        residuals = self.adapter(x, t, condition.context, batch["hint"].to(x), condition.vector)
        unet: Any = self.model.unet
        predicted: Tensor = unet(x, t, condition.context, condition.vector, residuals=residuals)
        return predicted
