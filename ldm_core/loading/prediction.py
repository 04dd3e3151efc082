"""What a U-Net predicts, found by evaluating it, for files that do not say.

SD2-base and SD2-v have the same tensors; one predicts eps, the other v = a eps - s x0 (Salimans and Ho 2022,
arXiv:2202.00512, section 4). At the noisiest timestep, where s is about 1 and a about 0, the input is the
noise itself: a network that predicts eps must return its input, one that predicts v returns what it
expects of the picture, which has nothing to do with that noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.errors import CheckpointError
from ldm_core.model import LatentDiffusion
from ldm_core.noise import randn

LATENT_SIZE = 32  # rows and columns, rounded to what the U-Net takes
IS_EPS, IS_V = 0.75, 0.25


def noise_similarity(model: LatentDiffusion) -> float:
    """The cosine between pure noise and the U-Net's answer to it at the last timestep, in [-1, 1].

    One evaluation, without a prompt. Input channels beyond the latents are zero.
    """
    config = model.config.unet
    size = -(-LATENT_SIZE // config.downsampling) * config.downsampling
    weight = model.weight_of("unet")
    noise = randn((1, config.out_channels, size, size), torch.Generator().manual_seed(0)).to(weight)
    x = torch.zeros(1, config.in_channels, size, size).to(weight)
    x[:, : config.out_channels] = noise
    with torch.no_grad():
        context = model.text_encoder(model.tokenizer([""]).to(model.weight_of("text_encoder").device))
        answer = model.unet(x, len(model.noise_schedule.alphas_cumprod) - 1, context.to(weight))
    return _cosine(answer.double(), noise.double())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))


def decide_prediction(similarity: float) -> str | None:
    """ "eps", "v", or None where the answer is neither nearly the noise nor nearly unrelated to it."""
    if similarity > IS_EPS:
        return "eps"
    return "v" if abs(similarity) < IS_V else None


def undecided(source: str, choices: Sequence[str], why: str = "") -> CheckpointError:
    """The error for a file that fits models that predict differently."""
    told = " or ".join(f"prediction={choice!r}" for choice in choices)
    return CheckpointError(
        f"{source} has the tensors of models that differ in what they predict{why}: say which with {told}"
    )


def predicted(model: LatentDiffusion, source: str, choices: Sequence[str]) -> str:
    """Which of the choices a model predicts, by evaluating it once, with a warning.

    source: the U-Net's file. Raises CheckpointError where it cannot be evaluated, or the output fits neither.
    """
    try:
        similarity = noise_similarity(model)
    except (RuntimeError, NotImplementedError) as error:  # on "meta", or in a type in which nothing computes
        raise undecided(source, choices, f", and it cannot be evaluated here ({error})") from error
    answer = decide_prediction(similarity)
    if answer is None or answer not in choices:
        why = f", and its output for pure noise settles nothing ({similarity:.2f})"
        raise undecided(source, choices, why)
    warnings.warn(
        f"nothing in {source} says what its U-Net predicts. Its output for pure noise correlates with that "
        f"noise at {similarity:.2f}, so it is taken to predict {answer}; pass prediction={answer!r} to skip "
        "this check",
        stacklevel=3,
    )
    return answer
