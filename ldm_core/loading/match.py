"""Holding configurations against what tensors prove, and recognising known models by it.

What shapes leave open is set to one fixed value on both sides (`Part.blank`), so that a file is recognised
only if its proven part is exactly one known model's; otherwise a configuration must be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ldm_core.config import PRESETS
from ldm_core.loading.parts import model_slots, part_of

Proven = Mapping[str, Any]  # configurations by slot


def fitted(config: Any, proven: Any) -> Any:
    """A part's configuration if it fits what is proved, less what the file lacks and the part does not need.

    None if it does not fit; where nothing is proved (None), everything does.
    """
    if proven is None:
        return config
    part = part_of(proven)
    if type(config) is not part.config:
        return None
    return next((one for one in (config, *part.reduced(config)) if part.blank(one) == proven), None)


def differences(config: Any, proven: Any) -> list[tuple[str, Any, Any]]:
    """(field, value here, value proved) where a part's configuration contradicts its tensors."""
    ours = part_of(proven).blank(config)
    values = ((field.name, getattr(ours, field.name), getattr(proven, field.name)) for field in fields(ours))
    return [(name, a, b) for name, a, b in values if a != b]


def matching_presets(proven: Proven) -> list[str]:
    """The names of the presets that have exactly the proven tensors in each of these parts."""
    proven = {slot: found for slot, found in proven.items() if slot in model_slots()}
    return [
        name
        for name, config in PRESETS.items()
        if proven and all(found and fitted(getattr(config, slot), found) for slot, found in proven.items())
    ]
