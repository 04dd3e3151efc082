"""The controls of a sampling run: hints are read once, and each evaluation gets the residuals of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition, Side
from ldm_core.control.coadapter import CoAdapterFuser, StyleAdapter
from ldm_core.control.control import Control, Encoded
from ldm_core.control.controlnet import ControlNet
from ldm_core.unet.residuals import Residuals


@dataclass(frozen=True)
class RunningControls:
    """Controls with their encoded hints, one row for each image of a run."""

    controls: tuple[tuple[Control, Encoded], ...]

    def at(self, index: int, total: int) -> RunningControls:
        """Those that act in a step."""
        return replace(self, controls=tuple(one for one in self.controls if one[0].acts(index, total)))

    def residuals(self, x: Tensor, t: float, condition: Condition, latent: Tensor) -> Residuals | None:
        """The sum of the controls' residuals for x; None if no control acts.

        latent: x with the channels that the condition joins to it, in the model's dtype.
        """
        sides = _sides(condition, len(x))
        total = None
        for control, encoded in self.controls:
            rows = [row for row, side in enumerate(sides) if side[1] or not control.conditional_only]
            if not rows:
                continue
            images = torch.tensor([sides[row][0] % encoded.count for row in rows])
            own = condition if len(rows) == len(sides) else condition[rows]
            taken = latent
            if isinstance(control.net, ControlNet) and control.net.config.in_channels == x.shape[1]:
                taken = x.to(latent.dtype)
            context = own.context if own.kept is None else own.kept
            found = control.residuals(encoded.rows(images), taken[rows], t, context, own.vector)
            found = found.on_rows(rows, len(sides))
            total = found if total is None else total + found
        return total


def _sides(condition: Condition, count: int) -> Sequence[Side]:
    """What each row is. Conditions that guidance made itself are conditional, in the order of the images."""
    return condition.sides if condition.sides is not None else [(row, True) for row in range(count)]


def prepare_controls(
    controls: Any, unet: Any, size: tuple[int, int], count: int, num_images: int
) -> RunningControls | None:
    """Encode the hints of a run; None without controls. size: h, w of the latent; count: of images.

    Raises ValueError for values that are no controls, hints that do not fit, and a U-Net without residuals.
    """
    if isinstance(controls, Control):
        controls = (controls,)
    if not isinstance(controls, Sequence) or not all(isinstance(one, Control) for one in controls):
        raise ValueError(f"expected controls as a list of ldm_core.Control, not {controls!r:.60}")
    acting = [control for control in controls if control.strength != 0]
    if not acting:
        return None
    if not getattr(unet, "takes_residuals", False):
        raise ValueError(
            f"controls add residuals to a U-Net's features, which {type(unet).__name__} does not take "
            "(models that work in windows do not)"
        )
    running = []
    for control in acting:
        encoded = control.encode(size)
        prompts = count // num_images
        if encoded.count not in (1, prompts):
            raise ValueError(f"expected one hint or one per prompt ({prompts}), got {encoded.count}")
        images = torch.arange(count) // num_images % encoded.count
        running.append((control, encoded.rows(images)))
    return RunningControls(tuple(running))


def with_styles(
    running: RunningControls, cond: Condition, uncond: Condition
) -> tuple[RunningControls, Condition, Condition]:
    """(the controls without styles, the two sides of guidance with the styles' tokens).

    A style's tokens are appended to the conditional context; the unconditional one repeats its own last ones.
    """
    others: list[tuple[Control, Encoded]] = []
    for control, encoded in running.controls:
        if isinstance(control.net, StyleAdapter | CoAdapterFuser) and encoded.tokens is not None:
            tokens = encoded.tokens * control.strength
            is_same = uncond is cond
            cond = _appended(cond, tokens)
            last = None if uncond.context is None else uncond.context[:, -tokens.shape[1] :]
            uncond = cond if is_same or last is None else _appended(uncond, last)
        if encoded.features or encoded.hint is not None:
            others.append((control, encoded))
    return RunningControls(tuple(others)), cond, uncond


def _appended(condition: Condition, tokens: Tensor) -> Condition:
    context = condition.context
    if context is None or context.shape[2] != tokens.shape[2]:
        width = None if context is None else context.shape[2]
        raise ValueError(f"the style has tokens of width {tokens.shape[2]}, the context {width}")
    return replace(condition, context=torch.cat([context, tokens.to(context)], dim=1))
