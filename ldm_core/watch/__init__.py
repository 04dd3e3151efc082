"""Observing a model while it samples: previews, strips, animations, image grids, attention maps and plots."""

from ldm_core.watch.attention_maps import record_attention
from ldm_core.watch.boxes import draw_boxes
from ldm_core.watch.comparison import guidance_sheet, solver_errors
from ldm_core.watch.grid import make_grid, stack
from ldm_core.watch.plots import (
    plot_errors,
    plot_schedules,
    plot_statistics,
    plot_token_attention,
    token_weights,
)
from ldm_core.watch.preview import LatentPreview, fit_linear, fit_preview
from ldm_core.watch.strip import Recorder, model_decode, record_steps
from ldm_core.watch.word_maps import WordMaps, overlay

__all__ = [
    "LatentPreview",
    "Recorder",
    "WordMaps",
    "draw_boxes",
    "fit_linear",
    "fit_preview",
    "guidance_sheet",
    "make_grid",
    "model_decode",
    "overlay",
    "plot_errors",
    "plot_schedules",
    "plot_statistics",
    "plot_token_attention",
    "record_attention",
    "record_steps",
    "solver_errors",
    "stack",
    "token_weights",
]
