"""The row of the registry for unCLIP's prior, a network that belongs to no model: `load_prior` loads it."""

from __future__ import annotations

from typing import Any

from ldm_core.loading.part import Folder, Layout, Part
from ldm_core.model_config import LatentDiffusionConfig
from ldm_core.prior import names, settings, shapes
from ldm_core.prior.config import PriorConfig
from ldm_core.prior.network import PriorTransformer


def _written_with_models(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    raise AssertionError("models are written without a prior")


PRIOR = Part(
    "prior",
    "prior",
    PriorConfig,
    PriorTransformer,
    (
        Layout(
            "diffusers",
            ("prd_embedding", "encoder_hidden_states_proj."),
            names.diffusers_map,
            shapes.diffusers_config,
            (("prior.", ""), ("", "")),
        ),
        Layout(
            "karlo",
            ("prd_emb", "clip_img_proj."),
            names.karlo_map,
            shapes.karlo_config,
            (("model.", ""), ("", "")),
        ),
    ),
    written=lambda config: "diffusers" if config.statistics else "karlo",
    blank=shapes.blank,
    fewest=shapes.fewest_tensors,
    folder=Folder({}, "diffusers", lambda own, folder: settings.prior_config(own), _written_with_models, {}),
    door="ldm_core.load_prior({path!r}, clip=clip)",
)
