"""PEFT's settings of an adapter, which determine the scales of its layers.

PEFT stores them in `adapter_config.json`, diffusers in the metadata of the file. A layer's scale is alpha /
r, or alpha / sqrt(r) (rank-stabilised LoRA, Kalajdzievski 2023, arXiv:2312.03732); individual layers can have
another rank and alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm_core.errors import CheckpointError
from ldm_core.support.limits import MAX_SIZE, is_number
from ldm_core.support.printable import shown

KINDS = ("LORA", "LOHA", "LOKR")

# Unsupported settings, which change the formula of a layer.
_OTHER_FORMULAS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)


@dataclass(frozen=True)
class PeftSettings:
    """Rank and alpha; the patterns map name suffixes of individual layers to (position, value)."""

    rank: float
    alpha: float
    rank_pattern: Mapping[str, tuple[int, float]]
    alpha_pattern: Mapping[str, tuple[int, float]]
    stabilised: bool = False

    def scale(self, layer: str, rank: int | None) -> float:
        """The scale of a layer's change. Raises ValueError if the rank differs from the settings."""
        expected = _lookup(self.rank_pattern, layer, self.rank)
        if rank is not None and expected != rank:
            raise ValueError(f"the rank is {rank}, but {expected:g} in the adapter's settings")
        alpha = _lookup(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(expected) if self.stabilised else expected)


def _lookup(pattern: Mapping[str, tuple[int, float]], layer: str, default: float) -> float:
    """The value of the first entry that is a suffix of the layer's name."""
    ends = [layer.split(".", n)[-1] for n in range(layer.count(".") + 1)]
    return min((pattern[end] for end in ends if end in pattern), default=(0, default))[1]


def parse_settings(values: Mapping[str, Any], source: str) -> PeftSettings:
    """Parse the configuration of an adapter. Raises CheckpointError, which names `source`."""
    kind = values.get("peft_type") or "LORA"
    if kind not in KINDS:
        raise CheckpointError(
            f"{source}: adapters of type {shown(kind)} are not supported, only LoRA, LoHa and LoKr"
        )
    for name in _OTHER_FORMULAS:
        if values.get(name):
            raise CheckpointError(f"{source}: {name} is not supported")
    initial = values.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise CheckpointError(
            f"{source}: unsupported init_lora_weights={shown(initial)}, which changes the weights"
        )
    rank = _rank(source, "r", values.get("r"))
    stabilised = values.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise CheckpointError(f"{source}: use_rslora must be true or false, not {shown(stabilised)}")
    alpha_name = "lora_alpha" if "lora_alpha" in values else "alpha"
    return PeftSettings(
        rank=rank,
        alpha=_number(source, alpha_name, values.get(alpha_name)),
        rank_pattern=_pattern(source, "rank_pattern", values.get("rank_pattern"), _rank),
        alpha_pattern=_pattern(source, "alpha_pattern", values.get("alpha_pattern"), _number),
        stabilised=stabilised,
    )


def _number(source: str, name: str, value: Any) -> float:
    if not is_number(value) or not 0 < value < 1e30:
        raise CheckpointError(f"{source}: {name} must be a positive number, not {shown(value)}")
    return float(value)


def _rank(source: str, name: str, value: Any) -> float:
    number = _number(source, name, value)
    if number > MAX_SIZE or number != int(number):
        raise CheckpointError(f"{source}: {name} must be an integer in 1..{MAX_SIZE}, not {number:g}")
    return number


def _pattern(
    source: str, name: str, values: Any, number: Callable[[str, str, Any], float]
) -> dict[str, tuple[int, float]]:
    """Parse a pattern mapping. PEFT allows regular expressions; only plain names are supported."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{source}: {name} must be a mapping, not {shown(values)}")
    pattern: dict[str, tuple[int, float]] = {}
    for key, value in values.items():
        plain = str(key).removeprefix("^").replace("\\.", ".")
        if not plain.replace(".", "").replace("_", "").isalnum():
            raise CheckpointError(
                f"{source}: {name} must have layer names as keys, not the pattern {shown(key)}"
            )
        pattern.setdefault(plain, (len(pattern), number(source, f"{name} of {plain[:80]}", value)))
    return pattern
