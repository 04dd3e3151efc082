"""The rows of the registry for controls, networks that belong to no model: `load_control` loads them."""

from __future__ import annotations

from typing import Any

from ldm_core.checkpoint.shapes import Shapes
from ldm_core.control import adapter_names, names, settings, shapes
from ldm_core.control.coadapter import CoAdapterFuser, FuserConfig, StyleAdapter, StyleAdapterConfig
from ldm_core.control.config import ControlNetConfig
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.t2i_adapter import T2IAdapter, T2IAdapterConfig
from ldm_core.loading.part import Folder, Layout, Part
from ldm_core.model_config import LatentDiffusionConfig

DIFFERENCE = "difference"  # marks weights that are differences to Stable Diffusion 1.5's
_ADAPTER = (("adapter.", ""), ("", ""))


def _written_with_models(model: LatentDiffusionConfig, folder: str) -> dict[str, Any]:
    raise AssertionError("no pipeline has a control")


def is_controlnet(found: Shapes) -> bool:
    """Whether tensors under a U-Net's names are a ControlNet, which has more."""
    return any(name.startswith(("input_hint_block.", "controlnet_cond_embedding.")) for name in found)


CONTROL_PARTS: tuple[Part, ...] = (
    Part(
        "controlnet",
        "ControlNet",
        ControlNetConfig,
        ControlNet,
        (
            Layout(
                "compvis",
                ("zero_convs.", "input_hint_block."),
                names.compvis_map,
                shapes.compvis_config,
                (("control_model.", ""), ("", "")),
                extras={DIFFERENCE: "marks weights that are differences to Stable Diffusion 1.5's"},
            ),
            Layout(
                "diffusers",
                ("controlnet_cond_embedding.",),
                names.diffusers_map,
                shapes.diffusers_config,
            ),
        ),
        blank=shapes.blank,
        fewest=shapes.fewest_tensors,
        folder=Folder(
            {}, "diffusers", lambda own, folder: settings.controlnet_config(own), _written_with_models, {}
        ),
    ),
    Part(
        "t2i_adapter",
        "T2I-Adapter",
        T2IAdapterConfig,
        T2IAdapter,
        (
            Layout(
                "original",
                ("body.",),
                adapter_names.original_map,
                adapter_names.original_config,
                _ADAPTER,
                accepts=lambda found: any(
                    f"body.0.{inner}block1.weight" in found for inner in ("", "body.0.")
                ),
            ),
            Layout(
                "diffusers",
                ("adapter.body.0.resnets.",),
                adapter_names.diffusers_map,
                adapter_names.diffusers_config,
            ),
        ),
        proves_all=True,
        folder=Folder(
            {}, "diffusers", lambda own, folder: adapter_names.adapter_config(own), _written_with_models, {}
        ),
    ),
    Part(
        "style_adapter",
        "style adapter",
        StyleAdapterConfig,
        StyleAdapter,
        (
            Layout(
                "original",
                ("style_embedding", "transformer_layes."),
                adapter_names.style_map,
                adapter_names.style_config,
                _ADAPTER,
            ),
        ),
        proves_all=True,
    ),
    Part(
        "coadapter_fuser",
        "CoAdapter fuser",
        FuserConfig,
        CoAdapterFuser,
        (
            Layout(
                "original",
                ("task_embedding", "spatial_ch_projs."),
                adapter_names.fuser_map,
                adapter_names.fuser_config,
                _ADAPTER,
            ),
        ),
        proves_all=True,
    ),
)
CONTROLS = tuple(part.name for part in CONTROL_PARTS)
