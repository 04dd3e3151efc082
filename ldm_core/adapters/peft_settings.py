"""PEFT's settings of an adapter: what scales its layers, which is in no tensor.

PEFT keeps them in `adapter_config.json` beside the weights, and diffusers in the metadata of the file. A
layer's scale is alpha / r, or alpha / sqrt(r) (rank-stabilised LoRA, Kalajdzievski 2023, arXiv:2312.03732);
single layers can have another rank and alpha, by their names.
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

# Settings that change what a layer computes beyond the formulas known here.
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
    """rank and alpha, and (position, value) of single layers' by the ends of their names."""

    rank: float
    alpha: float
    rank_pattern: Mapping[str, tuple[int, float]]
    alpha_pattern: Mapping[str, tuple[int, float]]
    stabilised: bool = False

    def scale(self, layer: str, rank: int | None) -> float:
        """What a layer's change is multiplied with. Raises ValueError where the rank is another one."""
        told = _lookup(self.rank_pattern, layer, self.rank)
        if rank is not None and told != rank:
            raise ValueError(f"its rank is {rank}, and {told:g} in the adapter's settings")
        alpha = _lookup(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(told) if self.stabilised else told)


def _lookup(pattern: Mapping[str, tuple[int, float]], layer: str, default: float) -> float:
    """The value of the first entry that the layer's name ends with."""
    ends = [layer.split(".", n)[-1] for n in range(layer.count(".") + 1)]
    return min((pattern[end] for end in ends if end in pattern), default=(0, default))[1]


def parse_settings(values: Mapping[str, Any], source: str) -> PeftSettings:
    """The settings in one adapter's configuration. Raises CheckpointError, naming `source`."""
    kind = values.get("peft_type") or "LORA"
    if kind not in KINDS:
        raise CheckpointError(
            f"{source}: adapters of the type {shown(kind)} are not supported, only LoRA, LoHa, LoKr"
        )
    for name in _OTHER_FORMULAS:
        if values.get(name):
            raise CheckpointError(f"{source}: it sets {name}, which is not supported")
    initial = values.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise CheckpointError(
            f"{source}: init_lora_weights is {shown(initial)}, which also changes the model's own weights"
        )
    rank = _rank(source, "r", values.get("r"))
    stabilised = values.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise CheckpointError(f"{source}: its use_rslora must be true or false, not {shown(stabilised)}")
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
        raise CheckpointError(f"{source}: its {name} must be a positive number, not {shown(value)}")
    return float(value)


def _rank(source: str, name: str, value: Any) -> float:
    number = _number(source, name, value)
    if number > MAX_SIZE or number != int(number):
        raise CheckpointError(f"{source}: its {name} must be a whole number in 1..{MAX_SIZE}, not {number:g}")
    return number


def _pattern(
    source: str, name: str, values: Any, number: Callable[[str, str, Any], float]
) -> dict[str, tuple[int, float]]:
    """PEFT's patterns are regular expressions for the ends of names; nearly all of them are plain names."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{source}: its {name} must be a mapping, not {shown(values)}")
    pattern: dict[str, tuple[int, float]] = {}
    for key, value in values.items():
        plain = str(key).removeprefix("^").replace("\\.", ".")
        if not plain.replace(".", "").replace("_", "").isalnum():
            raise CheckpointError(
                f"{source}: its {name} must have plain names of layers, not the pattern {shown(key)}"
            )
        pattern.setdefault(plain, (len(pattern), number(source, f"{name} of {plain[:80]}", value)))
    return pattern
