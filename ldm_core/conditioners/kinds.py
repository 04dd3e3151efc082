"""The configurations of conditioners, by the names that files give them."""

from __future__ import annotations

from typing import Any

from ldm_core.bert.config import LayoutConfig
from ldm_core.conditioners.class_embedder import ClassEmbedderConfig
from ldm_core.conditioners.depth import DepthConfig
from ldm_core.conditioners.grounding import GroundingConfig
from ldm_core.conditioners.instruction import InstructionConfig
from ldm_core.conditioners.low_resolution import LowResolutionConfig
from ldm_core.conditioners.masked_image import MaskedImageConfig
from ldm_core.conditioners.noised_image import NoisedImageConfig
from ldm_core.conditioners.retrieval import RetrievalConfig
from ldm_core.conditioners.semantic_map import SemanticMapConfig
from ldm_core.conditioners.unclip import UnclipConfig

CONDITIONERS: dict[str, type[Any]] = {
    "class_embedder": ClassEmbedderConfig,
    "depth": DepthConfig,
    "grounding": GroundingConfig,
    "instruction": InstructionConfig,
    "layout": LayoutConfig,
    "low_resolution": LowResolutionConfig,
    "masked_image": MaskedImageConfig,
    "noised_image": NoisedImageConfig,
    "retrieval": RetrievalConfig,
    "semantic_map": SemanticMapConfig,
    "unclip": UnclipConfig,
}
