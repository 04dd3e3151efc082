"""Guidance: how predictions under several conditions are combined into one. One method per file."""

from ldm_core.guidance.adaptive_projected import AdaptiveProjectedGuidance
from ldm_core.guidance.cfg_plus_plus import CFGPlusPlus
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Guidance, Network
from ldm_core.guidance.composition import Composition, require_classifier_free
from ldm_core.guidance.image_and_text import ImageAndTextGuidance, default_guidance
from ldm_core.guidance.perturbed_attention import PerturbedAttention

__all__ = [
    "AdaptiveProjectedGuidance",
    "CFGPlusPlus",
    "ClassifierFreeGuidance",
    "Composition",
    "Guidance",
    "ImageAndTextGuidance",
    "Network",
    "PerturbedAttention",
    "default_guidance",
    "require_classifier_free",
]
