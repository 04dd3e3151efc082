"""Observing a model while it samples: previews, strips, animations, image grids and attention maps."""

from ldm_core.watch.attention_maps import record_attention
from ldm_core.watch.boxes import draw_boxes
from ldm_core.watch.grid import make_grid, stack
from ldm_core.watch.preview import LatentPreview, fit_linear, fit_preview
from ldm_core.watch.strip import Recorder, model_decode, record_steps

__all__ = [
    "LatentPreview",
    "Recorder",
    "draw_boxes",
    "fit_linear",
    "fit_preview",
    "make_grid",
    "model_decode",
    "record_attention",
    "record_steps",
    "stack",
]
