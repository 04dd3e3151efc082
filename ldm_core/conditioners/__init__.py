"""Conditioners turn inputs (prompts, class labels) into Conditions: one file per kind of input."""

from ldm_core.conditioners.class_embedder import ClassEmbedder, ClassEmbedderConfig, ClassEmbedding
from ldm_core.conditioners.class_labels import ClassLabels
from ldm_core.conditioners.depth import Depth, DepthConfig
from ldm_core.conditioners.grounding import Grounding, GroundingConfig
from ldm_core.conditioners.imagenet import imagenet_classes
from ldm_core.conditioners.instruction import Instruction, InstructionConfig
from ldm_core.conditioners.layout import Box, Layout
from ldm_core.conditioners.low_resolution import LowResolution, LowResolutionConfig
from ldm_core.conditioners.masked_image import MaskedImage, MaskedImageConfig
from ldm_core.conditioners.noised_image import NoisedImage, NoisedImageConfig
from ldm_core.conditioners.retrieval import Retrieval, RetrievalConfig
from ldm_core.conditioners.retriever import Retriever
from ldm_core.conditioners.semantic_map import SemanticMap, SemanticMapConfig, SpatialRescaler
from ldm_core.conditioners.text import TextConditioner
from ldm_core.conditioners.unclip import Unclip, UnclipConfig
from ldm_core.conditioners.unconditional import Unconditional

__all__ = [
    "Box",
    "ClassEmbedder",
    "ClassEmbedderConfig",
    "ClassEmbedding",
    "ClassLabels",
    "Depth",
    "DepthConfig",
    "Grounding",
    "GroundingConfig",
    "Instruction",
    "InstructionConfig",
    "Layout",
    "LowResolution",
    "LowResolutionConfig",
    "MaskedImage",
    "MaskedImageConfig",
    "NoisedImage",
    "NoisedImageConfig",
    "Retrieval",
    "RetrievalConfig",
    "Retriever",
    "SemanticMap",
    "SemanticMapConfig",
    "SpatialRescaler",
    "TextConditioner",
    "Unclip",
    "UnclipConfig",
    "Unconditional",
    "imagenet_classes",
]
