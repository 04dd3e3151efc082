"""The rows of the registry for conditioners of inputs other than prompts.

A conditioner without weights is a row without layouts. CompVis's YAML configurations name the class of a
conditioner in `cond_stage_config`, and Stability AI's name a subclass of the whole model instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ldm_core.checkpoint.key_map import KeyMap, expand, same
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.checkpoint.yaml_values import Params, section
from ldm_core.conditioners.class_embedder import ClassEmbedder, ClassEmbedderConfig, ClassEmbedding
from ldm_core.conditioners.depth import Depth, DepthConfig
from ldm_core.conditioners.grounding import Grounding, GroundingConfig
from ldm_core.conditioners.imagenet import imagenet_classes
from ldm_core.conditioners.instruction import Instruction, InstructionConfig
from ldm_core.conditioners.low_resolution import LowResolution, LowResolutionConfig
from ldm_core.conditioners.masked_image import MaskedImage, MaskedImageConfig
from ldm_core.conditioners.noised_image import NoisedImage, NoisedImageConfig
from ldm_core.conditioners.retrieval import Retrieval, RetrievalConfig
from ldm_core.conditioners.semantic_map import SemanticMap, SemanticMapConfig, SpatialRescaler
from ldm_core.conditioners.text import TextConditioner
from ldm_core.config import CIN256, CIN256_V2
from ldm_core.errors import ConfigError
from ldm_core.loading.part import Layout, Part, Section
from ldm_core.nn.placement import parameter_names
from ldm_core.noise_schedule import NoiseScheduleConfig

SLOT = "conditioner"
STAGE = "cond_stage_config"
PREFIX = "cond_stage_model."
Parts = Mapping[str, Any]
IMAGENET = 1000  # classes


def _text(parts: Parts) -> TextConditioner:
    return TextConditioner(parts["tokenizer"], parts["text_encoder"])


def _stage(params: Params) -> Params:
    stage = section(params, STAGE)
    return section(stage, "params") if stage.get("params") else {}


def _layout(network: type[nn.Module], name: str, prove: Callable[[Shapes], Any]) -> Layout:
    """CompVis's layout of a network of one tensor, which has the same name here."""

    def key_map(config: Any) -> KeyMap:
        return expand(same(name), parameter_names(network, config))

    return Layout("compvis", (f"{name}.weight",), key_map, prove, ((PREFIX, ""), ("", "")), PREFIX)


def _without_weights(
    name: str,
    words: str,
    config: type[Any],
    conditions: Callable[[Any, Parts], Any],
    read: Callable[[Params], Any],
    target: str,
    call: str,
) -> Part:
    return Part(
        name, words, config, lambda own: nn.Module(), (), fills=SLOT, conditions=conditions,
        section=Section(STAGE, read, (target,)), call=call,
    )  # fmt: skip


def _null_class(classes: int) -> int | None:
    """The last row of a table of one row more than ImageNet has classes; others have none for guidance."""
    return IMAGENET if classes == IMAGENET + 1 else None


def _class_embedder(config: ClassEmbedderConfig, parts: Parts) -> ClassEmbedder:
    """With the names of the classes, if the table is that of a published ImageNet model."""
    published = config in (CIN256.conditioner, CIN256_V2.conditioner)
    return ClassEmbedder(parts[SLOT], imagenet_classes if published else None)


def _class_embedder_in_shapes(shapes: Shapes) -> ClassEmbedderConfig:
    classes, width = shapes["embedding.weight"]
    return ClassEmbedderConfig(classes, width)


def _without_null_class(config: ClassEmbedderConfig) -> ClassEmbedderConfig:
    return replace(config, null_class=None)


def _class_embedder_in_yaml(params: Params) -> ClassEmbedderConfig:
    stage = _stage(params)
    classes = stage.get("n_classes", IMAGENET)
    return ClassEmbedderConfig(classes, stage["embed_dim"], _null_class(classes))


def _semantic_map_in_shapes(shapes: Shapes) -> SemanticMapConfig:
    channels, classes = shapes["channel_mapper.weight"][:2]
    return SemanticMapConfig(classes, channels)


def _semantic_map_in_yaml(params: Params) -> SemanticMapConfig:
    stage = _stage(params)
    fixed = {"method": "bilinear", "multiplier": 0.5, "bias": False}
    for name, value in fixed.items():
        if stage.get(name, value) != value:
            raise ConfigError(f"SpatialRescaler's {name} must be {value}, not {stage[name]!r:.60}")
    channels = stage.get("out_channels")
    if channels is None:
        raise ConfigError("SpatialRescaler without out_channels is not supported")
    return SemanticMapConfig(stage.get("in_channels", 3), channels, stage.get("n_stages", 1))


def _low_resolution_in_yaml(params: Params) -> LowResolutionConfig | None:
    return LowResolutionConfig() if params.get("cond_stage_key") == "LR_image" else None


def _retrieval_in_yaml(params: Params) -> RetrievalConfig | None:
    """An `Identity` whose inputs the U-Net attends to: vectors that are computed elsewhere."""
    if params.get("conditioning_key") != "crossattn":
        return None
    return RetrievalConfig(section(params, "unet_config", "params")["context_dim"])


def _masked_image_in_yaml(params: Params) -> MaskedImageConfig:
    levels = section(params, "first_stage_config", "params", "ddconfig")["ch_mult"]
    return MaskedImageConfig(2 ** (len(levels) - 1))


def _depth_in_yaml(params: Params) -> DepthConfig:
    return DepthConfig(_masked_image_in_yaml(params).downsampling)


def _instruction_in_yaml(params: Params) -> InstructionConfig | None:
    """`LatentDiffusion` of `ddpm_edit`, whose class has the usual name."""
    if (params.get("cond_stage_key"), params.get("conditioning_key")) != ("edit", "hybrid"):
        return None
    channels = section(params, "unet_config", "params")["out_channels"]
    return InstructionConfig(_masked_image_in_yaml(params).downsampling, channels)


def _noised_image_in_yaml(params: Params) -> NoisedImageConfig:
    own = section(params, "low_scale_config", "params")
    schedule = own.get("noise_schedule_config") or {}
    return NoisedImageConfig(NoiseScheduleConfig(**schedule), own.get("max_noise_level", 1000))


CONDITIONER_PARTS: tuple[Part, ...] = (
    Part(
        "class_embedder", "class embedder", ClassEmbedderConfig, ClassEmbedding,
        (_layout(ClassEmbedding, "embedding", _class_embedder_in_shapes),),
        fills=SLOT, blank=_without_null_class,
        conditions=_class_embedder, call="sample(207)",
        section=Section(STAGE, _class_embedder_in_yaml, ("ClassEmbedder",)),
    ),
    Part(
        "semantic_map", "semantic map encoder", SemanticMapConfig, SpatialRescaler,
        (_layout(SpatialRescaler, "channel_mapper", _semantic_map_in_shapes),),
        fills=SLOT,
        conditions=lambda config, parts: SemanticMap(parts[SLOT]), call="sample(class_map)",
        section=Section(STAGE, _semantic_map_in_yaml, ("SpatialRescaler",)),
    ),
    _without_weights(
        "low_resolution", "small picture", LowResolutionConfig, lambda config, parts: LowResolution(config),
        _low_resolution_in_yaml, "Identity", "upscale(image)",
    ),
    _without_weights(
        "retrieval",
        "retrieved embeddings",
        RetrievalConfig,
        lambda config, parts: Retrieval(config=config),
        _retrieval_in_yaml,
        "Identity",
        "sample(embeddings)",
    ),
    _without_weights(
        "masked_image", "masked image", MaskedImageConfig,
        lambda config, parts: MaskedImage(config=config), _masked_image_in_yaml, "__is_first_stage__",
        "inpaint(None, image, mask)",
    ),
    _without_weights(
        "instruction", "picture and an instruction", InstructionConfig,
        lambda config, parts: Instruction(_text(parts), config=config), _instruction_in_yaml,
        "FrozenCLIPEmbedder", "edit(image, 'make it winter')",
    ),
    _without_weights(
        "grounding", "prompt and boxes with words", GroundingConfig,
        lambda config, parts: Grounding(_text(parts), config=config), lambda params: None, "",
        "sample({'prompt': 'a cat', 'boxes': [('a cat', 0.1, 0.2, 0.5, 0.6)]})",
    ),
    _without_weights(
        "depth", "depth map", DepthConfig, lambda config, parts: Depth(_text(parts), config=config),
        _depth_in_yaml, "LatentDepth2ImageDiffusion",
        "sample({'prompt': 'a cat', 'depth': depth})",
    ),
    _without_weights(
        "noised_image", "noised small picture", NoisedImageConfig,
        lambda config, parts: NoisedImage(_text(parts), config), _noised_image_in_yaml,
        "LatentUpscaleDiffusion", "upscale(image, 'a cat')",
    ),
)  # fmt: skip
