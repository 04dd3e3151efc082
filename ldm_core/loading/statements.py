"""Claims on the whole model in the tensors and settings of a network's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm_core.checkpoint.folder import ALONE, AUTOENCODER, MODEL_INDEX, VQ_AUTOENCODER
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.claims import Claim, Strength
from ldm_core.noise_schedule import NoiseScheduleConfig, betas_of
from ldm_core.support.limits import MAX_SCALE, is_number
from ldm_core.support.printable import shown

Says = Callable[[Checkpoint], Sequence[Claim]]

# The prediction type in the metadata of some programs: "modelspec" is used by Stability AI and kohya.
STATEMENT = "modelspec.prediction_type"
_STATED = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred"), "v"),
    **dict.fromkeys(("epsilon", "eps"), "eps"),
}

# The pipeline that ignores the scale in its autoencoder's settings.
UNSCALED = "LDMSuperResolutionPipeline"

# A table in bfloat16 is off by up to 2**-8; the table of another schedule differs by far more.
BETAS_RTOL = 1e-2


def of_a_unet(checkpoint: Checkpoint) -> list[Claim]:
    """The prediction type, the noise schedule, and the latent scale of the training."""
    claims = []
    stated = checkpoint.metadata.get(STATEMENT)
    if "v_pred" in checkpoint.tensors:
        claims.append(Claim("prediction", "v", "the tensor v_pred"))
    elif isinstance(stated, str) and stated.lower() in _STATED:
        claims.append(Claim("prediction", _STATED[stated.lower()], f"the metadata {STATEMENT}"))
    if "ztsnr" in checkpoint.tensors:
        claims.append(Claim("zero_terminal_snr", True, "the tensor ztsnr", Strength.PROVED))
    if (scale := stored_scale(checkpoint)) is not None:
        claims.append(Claim("latent_scale", scale, "the tensor scale_factor", Strength.PROVED))
    if (betas := stored_betas(checkpoint)) is not None:
        claims.append(Claim("noise_schedule", StoredBetas(betas), "the tensor betas", Strength.PROVED))
    return claims


def stored_scale(checkpoint: Checkpoint) -> float | None:
    """The latent scale that CompVis's trainer stores in a checkpoint if it measured one (`scale_by_std`)."""
    stored = checkpoint.tensors.get("scale_factor")
    return float(stored) if stored is not None and stored.numel() == 1 and not stored.is_meta else None


def of_an_autoencoder(checkpoint: Checkpoint) -> list[Claim]:
    """The latent scale in the settings of a diffusers folder."""
    if (checkpoint.metadata.get(MODEL_INDEX) or {}).get("_class_name") == UNSCALED:
        return [Claim("latent_scale", 1.0, f"{UNSCALED} (it does not scale latents)", Strength.PROVED)]
    file = VQ_AUTOENCODER if VQ_AUTOENCODER in checkpoint.metadata else AUTOENCODER
    settings = checkpoint.metadata.get(file, checkpoint.metadata.get(ALONE))
    if checkpoint.format != "diffusers" or settings is None or "scaling_factor" not in settings:
        return []
    scale = settings["scaling_factor"]
    if not is_number(scale) or not 0 < scale <= MAX_SCALE:
        raise CheckpointError(
            f"{file}: scaling_factor must be a positive number up to {MAX_SCALE:g}, not {shown(scale)}"
        )
    return [Claim("latent_scale", float(scale), file, Strength.PROVED)]


def stored_betas(checkpoint: Checkpoint) -> Tensor | None:
    """The betas (T,) in a file, if it has any and they were read."""
    betas = checkpoint.tensors.get("betas")
    return None if betas is None or betas.is_meta or betas.ndim != 1 or betas.numel() == 0 else betas


@dataclass(frozen=True, eq=False)
class StoredBetas:
    """A table of betas (T,), which proves a schedule."""

    betas: Tensor

    def agree(self, config: NoiseScheduleConfig) -> bool:
        """Whether the table matches this schedule.

        A file that states a zero terminal SNR may contain the table before that rescaling.
        """
        tables = [betas_of(config), betas_of(replace(config, zero_terminal_snr=False))]
        return any(
            self.betas.shape == made.shape and self.betas.double().allclose(made, rtol=BETAS_RTOL, atol=0)
            for made in tables
        )

    def __repr__(self) -> str:
        """The number of betas, the first and last one, and the name of the rule."""
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
        return f"{in_words(self.betas)}, by an unknown rule"


def in_words(betas: Tensor) -> str:
    """The number of betas, and the first and last one."""
    if betas.is_complex():
        return "complex betas"
    return f"{len(betas)} betas from {float(betas[0]):.6g} to {float(betas[-1]):.6g}"
