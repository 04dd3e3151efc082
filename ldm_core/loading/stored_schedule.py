"""The noise schedule that a file itself holds: the betas that CompVis's trainer keeps as a buffer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.errors import ConfigError
from ldm_core.noise_schedule import NoiseScheduleConfig, betas_of

# A table in 16 bits is off by up to 2**-8 (bfloat16); one of another schedule by far more.
BETAS_RTOL = 1e-2


def stored_betas(checkpoint: Checkpoint) -> Tensor | None:
    """The betas in a file, if it has any and they were read."""
    betas = checkpoint.tensors.get("betas")
    return None if betas is None or betas.is_meta or betas.ndim != 1 or betas.numel() == 0 else betas


@dataclass(frozen=True, eq=False)
class StoredBetas:
    """A table of betas (T,), as a proof of a schedule."""

    betas: Tensor

    def agree(self, config: NoiseScheduleConfig) -> bool:
        """Whether they may be of this schedule.

        A file that states a zero terminal SNR may hold the table from before it was changed for that.
        """
        tables = [betas_of(config), betas_of(replace(config, zero_terminal_snr=False))]
        return any(
            self.betas.shape == made.shape and self.betas.double().allclose(made, rtol=BETAS_RTOL, atol=0)
            for made in tables
        )

    def __repr__(self) -> str:
        """How many, from where to where, and by which rule, if it is a known one."""
        if self.betas.is_complex():
            return in_words(self.betas)
        first, last = float(self.betas[0]), float(self.betas[-1])
        for rule in ("scaled_linear", "linear", "cosine", "sqrt"):
            ends = (first, last) if rule != "sqrt" else (first**2, last**2)
            try:
                config = NoiseScheduleConfig(len(self.betas), rule, *ends)
            except ConfigError:
                continue
            if self.agree(config):
                return f"{in_words(self.betas)}, {rule}"
        return f"{in_words(self.betas)}, by no rule known here"


def in_words(betas: Tensor) -> str:
    """How many betas, from where to where."""
    if betas.is_complex():
        return "betas that are complex numbers"
    return f"{len(betas)} betas from {float(betas[0]):.6g} to {float(betas[-1]):.6g}"
