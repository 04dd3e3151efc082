"""A way of working: grids of pictures from prompts with flags, and ways to go on from them."""

from ldm_core.workbench.bench import Workbench
from ldm_core.workbench.description import WORDS, describe
from ldm_core.workbench.flags import Flags, parse_flags
from ldm_core.workbench.noise import mixed_noise
from ldm_core.workbench.pictures import Grid, Picture

__all__ = ["WORDS", "Flags", "Grid", "Picture", "Workbench", "describe", "mixed_noise", "parse_flags"]
