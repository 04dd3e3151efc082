"""Find the prediction type of a U-Net by evaluating it, for files that do not state it.

SD2-base and SD2-v have the same tensors; one predicts eps, the other v = a eps - s x0 (Salimans and Ho 2022,
arXiv:2202.00512, section 4). At the noisiest timestep, where s is about 1 and a about 0, the input is the
noise itself: a network that predicts eps must return its input; one that predicts v returns its
estimate of -x0, which is unrelated to that noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.errors import CheckpointError
from ldm_core.model import LatentDiffusion
from ldm_core.noise import randn
from ldm_core.support.warn import warn

LATENT_SIZE = 32  # rows and columns, rounded up to a multiple that the U-Net takes
IS_EPS, IS_V = 0.75, 0.25


def noise_similarity(model: LatentDiffusion) -> float:
    """The cosine between pure noise and the U-Net's output for it at the last timestep, in [-1, 1].

    One evaluation with the conditioner's unconditional inputs, such as the empty prompt. Input channels
    besides the latents are zero. Raises ValueError if the conditioner has no unconditional inputs.
    """
    config = model.config.unet
    size = -(-LATENT_SIZE // config.downsampling) * config.downsampling
    weight = model.weight_of("unet")
    noise = randn((1, config.out_channels, size, size), torch.Generator().manual_seed(0)).to(weight)
    x = torch.zeros(1, config.in_channels, size, size).to(weight)
    x[:, : config.out_channels] = noise
    with torch.no_grad():
        condition = model.condition(model.conditioner.unconditional)
        vector = () if condition.vector is None else (condition.vector,)
        output = model.unet(x, len(model.noise_schedule) - 1, condition.context, *vector)
    return _cosine(output.double(), noise.double())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))


def decide_prediction(similarity: float) -> str | None:
    """ "eps" for an output close to the noise, "v" for one unrelated to it, and None in between."""
    if similarity > IS_EPS:
        return "eps"
    return "v" if abs(similarity) < IS_V else None


def undecided(source: str, choices: Sequence[str], why: str = "") -> CheckpointError:
    """The error for a file that matches models with different prediction types."""
    told = " or ".join(f"prediction={choice!r}" for choice in choices)
    return CheckpointError(f"{source} matches models with different prediction types{why}: pass {told}")


def predicted(model: LatentDiffusion, source: str, choices: Sequence[str]) -> str:
    """The prediction type of a model, found by evaluating it once, with a warning.

    source: the U-Net's file. choices: the possible types. Raises CheckpointError if the model cannot be
    evaluated, or if the output is inconclusive.
    """
    try:
        similarity = noise_similarity(model)
    except (RuntimeError, ValueError) as error:  # "meta", a dtype without arithmetic, no inputs for this
        raise undecided(source, choices, f", and it cannot be evaluated here ({error})") from error
    found = decide_prediction(similarity)
    if found is None or found not in choices:
        why = f", and its output for pure noise is inconclusive (correlation {similarity:.2f})"
        raise undecided(source, choices, why)
    warn(
        f"{source} does not state the prediction type of its U-Net. Its output for pure noise correlates "
        f"with that noise at {similarity:.2f}, so it is taken to predict {found}; pass prediction={found!r} "
        "to skip this check"
    )
    return found
