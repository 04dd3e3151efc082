"""Reads and writes the settings of a prior and of its scheduler in diffusers' folders."""

from __future__ import annotations

from typing import Any, NamedTuple

from ldm_core.checkpoint.setting_values import Settings, check_fixed, reading, real, whole
from ldm_core.errors import ConfigError
from ldm_core.noise_schedule import NoiseScheduleConfig
from ldm_core.prior.config import EXTRA_TOKENS, PriorConfig

CLASS = "PriorTransformer"
# Settings that change the network, with their only supported value.
_FIXED: dict[str, Any] = {
    "additional_embeddings": EXTRA_TOKENS,
    "time_embed_act_fn": "silu",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
}
SCHEDULER = "prior_scheduler/scheduler_config.json"
_FIXED_SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": True}


def prior_config(settings: Settings) -> PriorConfig:
    """From the settings of `PriorTransformer`. Raises CheckpointError for unsupported ones."""
    check_fixed(CLASS, settings, _FIXED)
    with reading(CLASS):
        heads, size = whole(settings, "num_attention_heads", 32), whole(settings, "attention_head_dim", 64)
        dim = whole(settings, "embedding_dim", 768)
        for name, only in (
            ("time_embed_dim", heads * size),
            ("embedding_proj_dim", dim),
            ("clip_embed_dim", dim),
        ):
            if settings.get(name) not in (None, only):
                raise ConfigError(f"{name} must be {only}, not {settings[name]!r:.60}")
        return PriorConfig(
            width=heads * size,
            layers=whole(settings, "num_layers", 20),
            heads=heads,
            embedding_dim=dim,
            text_width=dim,
            context_length=whole(settings, "num_embeddings", 77),
        )


def prior_settings(config: PriorConfig) -> dict[str, Any]:
    """The inverse of `prior_config`. Raises ConfigError for a prior that diffusers does not have."""
    if config.text_width != config.embedding_dim:
        raise ConfigError(
            "diffusers' hidden states are as wide as its embeddings, and this prior's have "
            f"{config.text_width} and {config.embedding_dim} numbers"
        )
    return {
        "_class_name": CLASS,
        **_FIXED,
        "attention_head_dim": config.width // config.heads,
        "clip_embed_dim": None,
        "dropout": 0.0,
        "embedding_dim": config.embedding_dim,
        "embedding_proj_dim": None,
        "num_attention_heads": config.heads,
        "num_embeddings": config.context_length,
        "num_layers": config.layers,
        "time_embed_dim": None,
    }


class PriorSchedule(NamedTuple):
    """The noise schedule of a prior, and the bound of its predictions."""

    noise_schedule: NoiseScheduleConfig
    clip_range: float


def prior_schedule(settings: Settings) -> PriorSchedule:
    """From the settings of `UnCLIPScheduler`, or of diffusers' other schedulers that replace it.

    Raises CheckpointError for unsupported ones.
    """
    check_fixed(SCHEDULER, settings, _FIXED_SCHEDULE)
    with reading(SCHEDULER):
        steps = whole(settings, "num_train_timesteps", 1000)
        schedule = NoiseScheduleConfig(timesteps=steps, beta_schedule="cosine")
        clip_range = real(settings, "clip_sample_range", 1.0)
        if clip_range <= 0:
            raise ConfigError(f"clip_sample_range must be positive, not {clip_range}")
        return PriorSchedule(schedule, clip_range)
