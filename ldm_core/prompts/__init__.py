"""Prompt grammars: from text to pieces with weights, to texts by step, and to alternatives with weights.

The functions are pure: they take text and return plain values. `Sampler(model, prompts="a1111")` and
`Sampler(model, prompts="compel")` use them.
"""

from ldm_core.prompts.compel import CompelPrompt, compel
from ldm_core.prompts.composition import alternatives
from ldm_core.prompts.editing import schedule
from ldm_core.prompts.emphasis import BREAK, weights

__all__ = ["BREAK", "CompelPrompt", "alternatives", "compel", "schedule", "weights"]
