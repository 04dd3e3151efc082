"""Exercise 2: uncond + scale (cond - uncond) (Ho and Salimans 2022, arXiv:2207.12598, equation 6)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.exercises.expect import draw, expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.testing import check_guidance

T = 500


def network(x: Tensor, t: float, condition: Condition) -> Tensor:
    """A function of x and the condition, row by row, in place of a U-Net."""
    if t != T:
        raise ValueError(f"network(x, t, condition) got t = {t}; expected the given t, {T}")
    context = condition.context
    if context is None or len(context) != len(x):
        rows = 0 if context is None else len(context)
        raise ValueError(f"network(x, t, condition) got {len(x)} rows of x and {rows} of the condition")
    return torch.tanh(0.8 * x + 2 * context.mean(dim=(1, 2))[:, None, None, None] + t / 1000)


def check(answer: UserFile) -> Iterator[str]:
    guidance = answer.get("guidance")
    x = draw(2, 4, 3, 3, seed=0)
    given, empty = (Condition(context=draw(2, 5, 6, seed=seed)) for seed in (1, 2))
    cond, uncond = network(x, T, given), network(x, T, empty)
    for scale in (7.5, 1.0, 0.0, 0.5):
        yield f"the guided prediction at scale {scale:g}"
        expected = ClassifierFreeGuidance()(network, x, T, given, empty, scale, 0.3)
        actual = answer.call(guidance, network, x, T, given, empty, scale, 0.3, name="guidance")
        mistakes = lambda: mistakes_at(cond, uncond, scale)  # noqa: B023, E731
        expect_values("the guided prediction", actual, expected, mistakes)
    yield "the contract of a guidance (ldm_core.testing.check_guidance)"
    answer.meets(check_guidance, guidance)


def mistakes_at(cond: Tensor, uncond: Tensor, scale: float) -> dict[str, Tensor]:
    return {
        "The direction is wrong: you return cond + scale * (uncond - cond), which moves towards the "
        "unconditional prediction, and scale = 1 gives it. Begin at `uncond` and move towards `cond`. (If "
        "the formula is right, the two predictions are swapped: they come in the order of their rows.)": (
            cond + scale * (uncond - cond)
        ),
        "The sign is wrong: you return uncond - scale * (cond - uncond), which moves away from the prompt.": (
            uncond - scale * (cond - uncond)
        ),
        "You begin at the conditional prediction: cond + scale * (cond - uncond), which is (1 + w) cond - w "
        "uncond, the paper's equation with w = scale. Here scale = w + 1: scale 1 means no guidance.": (
            cond + scale * (cond - uncond)
        ),
        "You return the difference alone, scale * (cond - uncond): add the unconditional prediction.": (
            scale * (cond - uncond)
        ),
        "You return scale * cond: the unconditional prediction is missing.": scale * cond,
        "You return scale * cond - uncond: `uncond` needs the factor 1 - scale.": scale * cond - uncond,
        "You return the conditional prediction whatever the scale is.": cond,
        "You return the unconditional prediction whatever the scale is.": uncond,
        "You return the mean of both predictions.": (cond + uncond) / 2,
    }
