"""diffusers' pipelines: the models that each one runs, and what its folder contains besides the networks.

The class of the pipeline in `model_index.json` and the settings of its other components tell the conditioner.
The pipelines of the latent diffusion paper have the autoencoder in `vqvae`, of whatever kind it is, and those
of Stable Diffusion have it in `vae`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_core.bert.config import BERTConfig
from ldm_core.checkpoint.folder import (
    AUTOENCODER,
    FEATURE_EXTRACTOR,
    IMAGE_ENCODER,
    IMAGE_NOISING_SCHEDULER,
    IMAGE_NORMALIZER,
    LOW_RES_SCHEDULER,
    MODEL_INDEX,
    UNCLIP_NETWORKS,
)
from ldm_core.checkpoint.setting_values import Settings, block_widths, reading, whole
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.settings import image_encoder_in, image_encoder_settings, preprocessor_settings
from ldm_core.conditioners.depth import DepthConfig
from ldm_core.conditioners.grounding import GroundingConfig
from ldm_core.conditioners.instruction import InstructionConfig
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

    def subfolders(self, names: Iterable[str]) -> list[str]:
        """Those of these subfolders of a network that this pipeline has."""
        return [name for name in names if name in self.networks]


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


def _check_downsampling(model: LatentDiffusionConfig) -> None:
    own = model.conditioner
    if own is not None and own.downsampling != model.autoencoder.downsampling:
        raise ConfigError(
            f"the conditioner's downsampling is {own.downsampling}, the autoencoder's "
            f"{model.autoencoder.downsampling}"
        )


def _depth(settings: Mapping[str, Settings]) -> DepthConfig:
    return DepthConfig(_downsampling(settings))


def _downsampling(settings: Mapping[str, Settings]) -> int:
    with reading(AUTOENCODER):
        return int(2 ** (len(block_widths(settings[AUTOENCODER])) - 1))


def _instruction(settings: Mapping[str, Settings]) -> InstructionConfig:
    with reading(AUTOENCODER):
        channels = whole(settings[AUTOENCODER], "latent_channels", 4)
    return InstructionConfig(_downsampling(settings), channels)


def _check_objects(model: LatentDiffusionConfig) -> None:
    if model.conditioner is not None and model.conditioner != GroundingConfig():
        raise ConfigError(
            f"StableDiffusionGLIGENPipeline has {GroundingConfig().objects} objects, not "
            f"{model.conditioner.objects}"
        )


def _noised_image(settings: Mapping[str, Settings]) -> NoisedImageConfig:
    schedule = noise_schedule_config(settings.get(LOW_RES_SCHEDULER, {}), LOW_RES_SCHEDULER)
    with reading(MODEL_INDEX):
        return NoisedImageConfig(schedule, whole(settings[MODEL_INDEX], "max_noise_level", 350))


def _unclip(settings: Mapping[str, Settings]) -> UnclipConfig:
    with reading(IMAGE_NORMALIZER):
        width = whole(settings.get(IMAGE_NORMALIZER, {}), "embedding_dim", 768)
    schedule = noise_schedule_config(settings.get(IMAGE_NOISING_SCHEDULER, {}), IMAGE_NOISING_SCHEDULER)
    encoder = None
    if IMAGE_ENCODER in settings:
        pixels = settings.get(FEATURE_EXTRACTOR, {})
        joint = settings[IMAGE_ENCODER].get("projection_dim", 512)
        encoder = image_encoder_in(settings[IMAGE_ENCODER], joint, pixels, IMAGE_ENCODER)
    with reading(MODEL_INDEX):
        return UnclipConfig(width, schedule, encoder, statistics=True)


def _unclip_entries(config: UnclipConfig) -> dict[str, Any]:
    encodes = config.image_encoder is not None
    return {
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if encodes else _NONE,
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"] if encodes else _NONE,
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    }


def _unclip_files(config: UnclipConfig) -> dict[str, Any]:
    normalizer = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": config.width}
    files = {IMAGE_NORMALIZER: normalizer, IMAGE_NOISING_SCHEDULER: _noising(config)}
    if config.image_encoder is not None:
        files[IMAGE_ENCODER] = image_encoder_settings(config.image_encoder)
        files[FEATURE_EXTRACTOR] = preprocessor_settings(config.image_encoder)
    return files


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
        read=_depth, check=_check_downsampling,
    ),
    Pipeline(
        "StableDiffusionInstructPix2PixPipeline", SD, InstructionConfig, 4, entries=_SAFETY,
        read=_instruction, check=_check_downsampling,
    ),
    Pipeline(
        "StableDiffusionGLIGENPipeline", SD, GroundingConfig,
        entries={name: entry for name, entry in _SAFETY.items() if name != "image_encoder"},
        read=lambda settings: GroundingConfig(), check=_check_objects,
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
    Pipeline(
        "StableUnCLIPImg2ImgPipeline", (*SD, *UNCLIP_NETWORKS), UnclipConfig, vector=True,
        mark="image_normalizer", own=_unclip_entries, files=_unclip_files, read=_unclip,
    ),
    # Only read, since models have no prior; `load_prior` reads it.
    Pipeline(
        "StableUnCLIPPipeline", (*SD, *UNCLIP_NETWORKS), UnclipConfig, vector=True,
        mark="image_normalizer", read=_unclip,
    ),
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
