"""The condition and unconditional condition of a request: which there are, and how they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.conditioners.prompt_encoder import PromptEncoder, PromptPhase
from ldm_core.conditioners.prompt_syntax import PromptSyntax
from ldm_core.conditioners.text import TextConditioner, as_prompts
from ldm_core.model import LatentDiffusion
from ldm_core.model_config import LatentDiffusionConfig
from ldm_core.request import Request

GUIDANCE_SCALE = 7.5  # the default with an unconditional condition, as in CompVis's scripts/txt2img.py


@dataclass(frozen=True)
class Conditions:
    """The conditions of the steps up to `last`, counted from 1, with one row per image.

    weights, others: of prompts with alternatives, as in `ldm_core.guidance.Composition`; otherwise None, ().
    """

    cond: Condition
    uncond: Condition  # `cond` itself without guidance
    last: int | None = None  # None: of all steps
    weights: Tensor | None = None
    others: tuple[tuple[Condition, Tensor], ...] = ()

    def with_concat(self, concat: Tensor) -> Conditions:
        """The same conditions with further input channels (B, C', h, w)."""
        return replace(
            self,
            cond=replace(self.cond, concat=concat),
            uncond=replace(self.uncond, concat=concat),
            others=tuple((replace(other, concat=concat), weights) for other, weights in self.others),
        )


class RequestCondition:
    """The condition and unconditional condition of a request: checked here, computed by `encode`."""

    def __init__(
        self,
        model: LatentDiffusion,
        request: Request,
        batch_size: int | None,
        clip_skip: int | None,
        syntax: PromptSyntax | None = None,
    ) -> None:
        self.syntax = syntax
        self.model, self.request = model, request
        own: Any = model.conditioner
        self.conditioner: Any = own
        text = own if isinstance(own, TextConditioner) else getattr(own, "text", None)
        if isinstance(text, TextConditioner):
            skip = text.clip_skip if clip_skip is None else clip_skip
            text = replace(text, clip_skip=skip, batch_size=batch_size)
            self.conditioner = text if isinstance(own, TextConditioner) else replace(own, text=text)
        elif clip_skip is not None:
            raise ValueError("clip_skip requires a text encoder, which this model lacks")
        # A conditioner of masked images takes the request's image and mask as its inputs.
        self.hides_masked = getattr(self.conditioner, "hides_masked", False) and request.condition is None
        if self.hides_masked and request.inputs is None and request.image is not None:
            request = self.request = replace(request, inputs=(request.image, request.mask))
        self.count = self._count_inputs()
        self.unconditional = self._check_unconditional()
        if not isinstance(request.num_images, int) or request.num_images < 1:
            raise ValueError(f"num_images must be a positive int, not {request.num_images!r}")
        self.guidance_scale = self._scale()
        unet = model.config.unet
        text_only = isinstance(self.conditioner, TextConditioner)
        self.takes_mask = text_only and unet.in_channels == 2 * unet.out_channels + 1
        if text_only or request.condition is not None:
            given = Condition() if request.condition is None else request.condition
            _check_fields(model.config, given, self.takes_mask)

    def _count_inputs(self) -> int:
        request = self.request
        if request.condition is None:
            return int(self.conditioner.count(request.inputs))
        if request.inputs is not None:
            raise ValueError("pass inputs or a condition, not both")
        return request.condition.rows or 1

    def _check_unconditional(self) -> Any:
        """The inputs for the unconditional condition, or the condition itself, or None."""
        request = self.request
        if request.unconditional_condition is not None:
            if request.unconditional is not None:
                raise ValueError("pass unconditional inputs or an unconditional_condition, not both")
            given: Any = request.unconditional_condition
            rows = given.rows or 1
        else:
            default = self.conditioner.unconditional
            given = default if request.unconditional is None else request.unconditional
            if given is None:
                return None
            text = isinstance(self.conditioner, TextConditioner)
            rows = self.conditioner.count(given, "negative_prompt" if text else "unconditional")
        if rows not in (1, self.count):
            expected = "1" if self.count == 1 else f"1 or {self.count}"
            raise ValueError(f"expected {expected} negative prompt(s) for {self.count} prompt(s), got {rows}")
        return given

    def _scale(self) -> float:
        scale = self.request.guidance_scale
        if scale is None:
            default = getattr(self.conditioner, "guidance_scale", GUIDANCE_SCALE)
            return default if self.has_unconditional else 1.0
        if not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number, not {scale!r}")
        if not self.has_unconditional and scale != 1:
            raise ValueError(
                f"guidance_scale {scale} needs an unconditional condition: pass unconditional= or "
                "unconditional_condition=, or guidance_scale=1"
            )
        return float(scale)

    @property
    def has_unconditional(self) -> bool:
        return self.unconditional is not None or self._unconditional_for is not None

    @property
    def _unconditional_for(self) -> Callable[[Condition], Condition] | None:
        """The conditioner's own rule for the unconditional condition, given the conditional one."""
        return (
            None if self.unconditional is not None else getattr(self.conditioner, "unconditional_for", None)
        )

    def latent_size(self) -> tuple[int, int] | None:
        """The latent rows and columns that the inputs or the condition determine."""
        if self.request.condition is not None:
            concat = self.request.condition.concat
            return None if concat is None else (concat.shape[2], concat.shape[3])
        sized = getattr(self.conditioner, "latent_size", None)
        return None if sized is None else sized(self.request.inputs)

    def encode(self, draws: list[torch.Generator], steps: int) -> list[Conditions]:
        """The conditions of a run's phases: one, unless a prompt changes.

        Images of one input are consecutive.
        """
        syntax = self._encode_syntax(steps)
        if syntax:
            return syntax
        pair = self._encode_plain(draws)
        split = getattr(self.conditioner, "phases", None)  # of conditions that act in some steps only
        phases = [(*pair, None)] if split is None else split(*pair, self.request.inputs, steps)
        return [Conditions(*phase) for phase in phases]

    def _encode_syntax(self, steps: int) -> list[Conditions]:
        """The phases of prompts with syntax; none if there is no syntax in them, or none is read."""
        if self.syntax is None or self.request.condition is not None:
            return []
        if not isinstance(self.conditioner, TextConditioner):
            raise ValueError("prompt syntax requires a model of prompts alone, such as Stable Diffusion's")
        given = self.unconditional
        prompts = as_prompts(self.request.inputs)
        negatives = as_prompts("" if given is None or isinstance(given, Condition) else given)
        encoder = PromptEncoder(self.conditioner)
        if all(self.syntax.is_plain(encoder, prompt) for prompt in (*prompts, *negatives)):
            return []
        negatives = negatives * (len(prompts) // len(negatives))
        rows: dict[int, Condition] = {}  # by the context's identity: phases share contexts that come back
        phases = self.syntax.phases(encoder, prompts, negatives, steps)
        return [self._conditions(phase, rows) for phase in phases]

    def _conditions(self, phase: PromptPhase, rows: dict[int, Condition]) -> Conditions:
        def condition(context: Tensor) -> Condition:
            if id(context) not in rows:
                rows[id(context)] = self._rows(Condition(context=context))
            return rows[id(context)]

        images = self.request.num_images
        pairs = [(condition(one), weights.repeat_interleave(images)) for one, weights in phase.alternatives]
        given = self.unconditional
        uncond = self._rows(given) if isinstance(given, Condition) else condition(phase.unconditional)
        (cond, weights), *others = pairs
        composed = bool(others) or bool((weights != 1).any())
        return Conditions(cond, uncond, phase.last, weights if composed else None, tuple(others))

    def _encode_plain(self, draws: list[torch.Generator]) -> tuple[Condition, Condition]:
        request = self.request
        if request.condition is not None:
            cond = self._rows(request.condition)
        elif getattr(self.conditioner, "draws_noise", False):
            cond = self._noised(draws)
        else:
            cond = self._rows(self.conditioner(request.inputs))
        if self._unconditional_for is not None and self.guidance_scale != 1:
            uncond = self._unconditional_for(cond)
        elif self.unconditional is None:
            return cond, cond
        else:
            other = self.unconditional
            uncond = self._rows(other if isinstance(other, Condition) else self.conditioner(other))
        # Fields that the unconditional condition lacks are shared.
        names = ("context", "vector", "concat")
        missing = {name: getattr(cond, name) for name in names if getattr(uncond, name) is None}
        return cond, replace(uncond, **missing)

    def _noised(self, draws: list[torch.Generator]) -> Condition:
        """The condition of inputs that are noised: images of one input have different noise."""
        inputs = self.request.inputs if isinstance(self.request.inputs, list) else [self.request.inputs]
        many = self.request.num_images
        rows = [
            self.conditioner(one, draws[i * many + k : i * many + k + 1])
            for i, one in enumerate(inputs)
            for k in range(many)
        ]
        return Condition.cat(rows).to(self.model.device, self.model.dtype)

    def _rows(self, condition: Condition) -> Condition:
        condition = condition.to(self.model.device, self.model.dtype)
        if condition.rows is None:
            return condition
        rows = list(range(self.count)) if condition.rows == self.count else [0] * self.count
        return condition[[row for row in rows for _ in range(self.request.num_images)]]


def _check_fields(config: LatentDiffusionConfig, given: Condition, takes_mask: bool) -> None:
    """Raise ValueError if a condition lacks fields that the U-Net takes, and that are not made here."""
    unet = config.unet
    if unet.in_channels > unet.out_channels and not takes_mask and given.concat is None:
        raise ValueError(
            f"this U-Net takes {unet.in_channels} channels: {unet.out_channels} of latents and "
            f"{unet.in_channels - unet.out_channels} from condition.concat, which is missing"
        )
    labels = unet.num_classes is not None or unet.adm_in_channels is not None
    if labels and given.vector is None:
        raise ValueError("this U-Net also takes class labels or vectors: pass them as condition.vector")
