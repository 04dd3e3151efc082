"""The noise schedule that a file itself holds: the betas that CompVis's trainer keeps as a buffer."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.noise_schedule import NoiseScheduleConfig, betas_of

# A table in 16 bits is off by up to 2**-8 (bfloat16); one of another schedule by far more.
BETAS_RTOL = 1e-2


def stored_betas(checkpoint: Checkpoint) -> Tensor | None:
    """The betas in a file, if it has any and they were read."""
    betas = checkpoint.tensors.get("betas")
    return None if betas is None or betas.is_meta or betas.ndim != 1 or betas.numel() == 0 else betas


def check_schedule(checkpoint: Checkpoint, config: LatentDiffusionConfig) -> None:
    """Raise CheckpointError where a file's betas contradict its configuration."""
    betas = stored_betas(checkpoint)
    if betas is not None and not _agree(betas, config.noise_schedule):
        raise CheckpointError(
            f"{checkpoint.path.name} was trained with {_ends(betas)}, but its configuration says "
            f"{_ends(betas_of(config.noise_schedule))}"
        )


def _agree(betas: Tensor, config: NoiseScheduleConfig) -> bool:
    """A file that states a zero terminal SNR may still hold the table from before it was changed for that."""
    tables = [betas_of(config), betas_of(replace(config, zero_terminal_snr=False))]
    return any(
        betas.shape == made.shape and betas.double().allclose(made, rtol=BETAS_RTOL, atol=0)
        for made in tables
    )


def describe_betas(betas: Tensor) -> str:
    """The betas in words: how many, from where to where, and by which rule, if it is a known one."""
    if betas.is_complex():
        return "betas that are complex numbers"
    first, last = float(betas[0]), float(betas[-1])
    for rule in ("scaled_linear", "linear", "cosine", "sqrt"):
        ends = (first, last) if rule != "sqrt" else (first**2, last**2)
        try:
            config = NoiseScheduleConfig(len(betas), rule, *ends)
        except ConfigError:
            continue
        if _agree(betas, config):
            return f"{_ends(betas)}, {rule}"
    return f"{_ends(betas)}, by no rule known here"


def _ends(betas: Tensor) -> str:
    return f"{len(betas)} betas from {float(betas[0]):.6g} to {float(betas[-1]):.6g}"
