"""diffusers' pipelines: the models that each one runs, and what its folder contains besides the networks.

The class of the pipeline in `model_index.json` and the settings of its other components tell the conditioner.
The pipelines of the latent diffusion paper have the autoencoder in `vqvae`, of whatever kind it is, and those
of Stable Diffusion have it in `vae`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_core.bert.config import BERTConfig
from ldm_core.checkpoint.folder import AUTOENCODER, LOW_RES_SCHEDULER, MODEL_INDEX
from ldm_core.checkpoint.setting_values import Settings, block_widths, reading, whole
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.conditioners.depth import DepthConfig
from ldm_core.conditioners.kinds import CONDITIONERS
from ldm_core.conditioners.low_resolution import LowResolutionConfig
from ldm_core.conditioners.noised_image import NoisedImageConfig
from ldm_core.conditioners.unclip import UnclipConfig
from ldm_core.errors import ConfigError
from ldm_core.loading.diffusers_config import noise_schedule_config, noise_schedule_settings
from ldm_core.loading.statements import UNSCALED
from ldm_core.model_config import LatentDiffusionConfig

LDM = ("vqvae", "unet")
LDM_TEXT = ("vqvae", "bert", "tokenizer", "unet")
SD = ("vae", "text_encoder", "tokenizer", "unet")
_NONE = [None, None]
_SAFETY: dict[str, Any] = {
    "feature_extractor": _NONE,
    "image_encoder": _NONE,
    "safety_checker": _NONE,
    "requires_safety_checker": False,
}


@dataclass(frozen=True)
class Pipeline:
    """One class of diffusers.

    name         the class; networks: the names of its networks and its tokenizer, which are subfolders
    conditioner  the class of the model's conditioner, or None
    concat       the U-Net's input channels besides the latents; vector: whether it takes a vector condition
    entries      other entries of `model_index.json`
    mark         the entry that only folders of models with the conditioner have; None: the class tells
    own          the conditioner's configuration -> its entries
    files        the conditioner's configuration -> the settings files of these entries, by path
    read         the folder's settings -> the conditioner's configuration
    check        raises ConfigError for a model that the pipeline runs in another way
    """

    name: str
    networks: tuple[str, ...]
    conditioner: type[Any] | None = None
    concat: int = 0
    vector: bool = False
    entries: Mapping[str, Any] = field(default_factory=dict)
    mark: str | None = None
    own: Callable[[Any], dict[str, Any]] = lambda config: {}
    files: Callable[[Any], dict[str, Any]] = lambda config: {}
    read: Callable[[Mapping[str, Settings]], Any] | None = None
    check: Callable[[LatentDiffusionConfig], None] = lambda model: None

    @property
    def text(self) -> type[Any]:
        """The class of the text encoder's configuration."""
        clip, bert = "text_encoder" in self.networks, "bert" in self.networks
        return TextEncoderConfig if clip else BERTConfig if bert else type(None)

    def subfolder(self, names: tuple[str, ...]) -> str | None:
        """The name that this pipeline has of those of a network's subfolder."""
        return next((name for name in names if name in self.networks), None)


# --- what single pipelines store ---


def _check_ldm(model: LatentDiffusionConfig) -> None:
    if (model.text_encoder is None) != (model.unet.context_dim is None):
        raise ConfigError("its U-Net attends to a context, which no pipeline without text gives it")
    if model.unet.num_classes is not None or model.unet.adm_in_channels is not None:
        raise ConfigError("its U-Net takes class labels or vectors, which no pipeline of the paper gives it")


def _check_super_resolution(model: LatentDiffusionConfig) -> None:
    _check_ldm(model)
    if model.unet.in_channels != 2 * model.unet.out_channels:
        raise ConfigError(f"{UNSCALED} takes latents of 3 channels, not {model.unet.out_channels}")
    if model.latent_scale != 1:
        raise ConfigError(f"{UNSCALED} does not scale latents, and latent_scale is {model.latent_scale}")


def _check_depth(model: LatentDiffusionConfig) -> None:
    own = model.conditioner
    if own is not None and own.downsampling != model.autoencoder.downsampling:
        raise ConfigError(
            f"the depth conditioner's downsampling is {own.downsampling}, the autoencoder's "
            f"{model.autoencoder.downsampling}"
        )


def _depth(settings: Mapping[str, Settings]) -> DepthConfig:
    with reading(AUTOENCODER):
        return DepthConfig(2 ** (len(block_widths(settings[AUTOENCODER])) - 1))


def _noised_image(settings: Mapping[str, Settings]) -> NoisedImageConfig:
    schedule = noise_schedule_config(settings.get(LOW_RES_SCHEDULER, {}), LOW_RES_SCHEDULER)
    with reading(MODEL_INDEX):
        return NoisedImageConfig(schedule, whole(settings[MODEL_INDEX], "max_noise_level", 350))


def _noising(config: Any) -> dict[str, Any]:
    """The settings of the scheduler that adds noise to a condition."""
    return {
        "_class_name": "DDPMScheduler",
        "clip_sample": False,
        **noise_schedule_settings(config.noise_schedule),
    }


PIPELINES = (
    Pipeline("LDMPipeline", LDM, check=_check_ldm),
    Pipeline("LDMTextToImagePipeline", LDM_TEXT, check=_check_ldm),
    Pipeline(
        UNSCALED, LDM, LowResolutionConfig, 3,
        read=lambda settings: LowResolutionConfig(), check=_check_super_resolution,
    ),
    Pipeline("StableDiffusionPipeline", SD, entries=_SAFETY),
    Pipeline("StableDiffusionInpaintPipeline", SD, concat=5, entries=_SAFETY),
    Pipeline(
        "StableDiffusionDepth2ImgPipeline", SD, DepthConfig, 1, mark="depth_estimator",
        own=lambda config: {"depth_estimator": _NONE, "feature_extractor": _NONE},
        read=_depth, check=_check_depth,
    ),
    Pipeline(
        "StableDiffusionUpscalePipeline", SD, NoisedImageConfig, 3, mark="low_res_scheduler",
        own=lambda config: {
            "low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": config.levels,
            "feature_extractor": _NONE, "safety_checker": _NONE, "watermarker": _NONE,
        },
        files=lambda config: {LOW_RES_SCHEDULER: _noising(config)},
        read=_noised_image,
    ),
    Pipeline("StableUnCLIPImg2ImgPipeline", SD, UnclipConfig, vector=True),
)  # fmt: skip


def pipeline_of(model: LatentDiffusionConfig) -> Pipeline:
    """The pipeline that runs a model. Raises ConfigError that says why there is none."""
    unet, own = model.unet, type(model.conditioner)
    concat, vector = unet.in_channels - unet.out_channels, unet.adm_in_channels is not None
    fitting = [one for one in PIPELINES if one.text is type(model.text_encoder)]
    if model.conditioner is not None:
        kind = next((name for name, config in CONDITIONERS.items() if config is own), own.__name__)
        fitting = [one for one in fitting if one.conditioner is own]
        if not fitting:
            raise ConfigError(f"no pipeline has its conditioner, {kind}")
    else:  # it may be given Conditions, which these pipelines compute
        fitting = [one for one in fitting if one.conditioner is None or one.mark is not None]
    for one in fitting:
        if one.concat == concat and one.vector == vector:
            one.check(model)
            return one
    raise ConfigError(
        f"no pipeline takes a U-Net with {unet.in_channels} input channels and {unet.out_channels} latent "
        "channels"
    )


def conditioner_in(settings: Mapping[str, Settings]) -> Any:
    """The configuration of the conditioner in a folder's settings, or None."""
    index = settings.get(MODEL_INDEX, {})
    for one in PIPELINES:
        named = one.name == index.get("_class_name") and (one.mark is None or one.mark in index)
        if named and one.read is not None:
            return one.read(settings)
    return None
