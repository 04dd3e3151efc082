"""Find the parts in a file, the layout of each, and the tensors that belong to none.

EMA: CompVis's trainer stores averaged U-Net weights beside the trained ones, under names without dots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ldm_core.checkpoint.key_map import Problems, matched, prefixed
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.ignored import IGNORED, IGNORED_PREFIXES
from ldm_core.loading.parts import Layout, Part, parts
from ldm_core.support.printable import shown_error

UNUSED = "not used by the model"


@dataclass(frozen=True)
class PartSource:
    """One part in one file: its tensors by their names in the layout, without a prefix."""

    checkpoint: Checkpoint
    part: Part
    layout: Layout
    base: str  # the prefix of the file
    prefix: str  # the same, followed by the prefix of the part's class
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.checkpoint.path.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def door(self) -> str:
        """The line of Python that loads the file of a network outside models."""
        return self.part.door.format(path=str(self.checkpoint.path), name=self.part.name)

    def parameters(
        self, config: Any, network: nn.Module
    ) -> tuple[dict[str, Tensor], dict[str, str], Problems]:
        """(parameters by name, file keys by name, tensors that are missing, of wrong shape or unused)."""
        key_map = prefixed(self.layout.key_map(config), self.prefix, "")
        tensors = {self.prefix + name: tensor for name, tensor in self.tensors.items()}
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        found, problems = matched(key_map, tensors, shapes)
        keys = {name: key for key, entry in key_map.items() for name in entry.parameters}
        return found, keys, {**problems, UNUSED: [key for key in tensors if key not in key_map]}

    def prove(self) -> Any:
        """The configuration that the shapes prove, blank where they prove nothing.

        None for a layout without `prove`. Raises CheckpointError if the tensors form no network, or if more
        than half of them are missing: a few names can claim a network of any size.
        """
        if self.layout.prove is None:
            return None
        try:
            config = self.layout.prove(self.shapes)
        except ConfigError as error:
            raise CheckpointError(f"{self.name}: {error}") from error
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            lacks = isinstance(error, KeyError)
            wrong = (
                f"{shown_error(error)} is missing" if lacks else "the shapes or numbers of layers do not fit"
            )
            raise CheckpointError(
                f"{self.name}: the tensors under {self.prefix!r} do not form a known {self.part.name} "
                f"({self.layout.name} names): {wrong}"
            ) from error
        there, wanted = len(self.tensors), self.part.fewest(config)
        if wanted > 2 * there:
            raise CheckpointError(
                f"{self.name}: contains only {there:,} of at least {wanted:,} tensors that this "
                f"{self.part.words} needs"
            )
        return config


def find_parts(checkpoint: Checkpoint) -> dict[str, PartSource]:
    """The parts in a file, by slot, each at the first place where it is found."""
    keys = sorted(checkpoint.tensors)
    places: dict[str, tuple[Part, Layout, str, str]] = {}
    for part in parts():
        for layout in part.layouts:
            if part.slot not in places and (place := _place(checkpoint, keys, layout)) is not None:
                places[part.slot] = part, layout, *place
    # Keys under the prefix of another part do not belong to a part without a prefix.
    claimed = tuple(base or prefix for _, _, base, prefix in places.values() if prefix)
    found = {}
    for slot, (part, layout, base, prefix) in places.items():
        tensors = _part_tensors(checkpoint, layout, base, prefix, () if prefix else claimed)
        found[slot] = PartSource(checkpoint, part, layout, base, prefix, tensors)
    return _told_apart(found)


def _place(checkpoint: Checkpoint, keys: list[str], layout: Layout) -> tuple[str, str] | None:
    """(the file's prefix, the whole prefix) under which a file has this layout, or None (keys: sorted)."""
    for base, inner in layout.prefixes:
        marks = (base + inner + mark for mark in layout.marks)
        if not all(_any_starts_with(keys, mark) for mark in marks):
            continue
        if layout.accepts is None:
            return base, base + inner
        tensors = _part_tensors(checkpoint, layout, base, base + inner, ())
        if layout.accepts({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            return base, base + inner
    return None


def _any_starts_with(keys: list[str], prefix: str) -> bool:
    """Whether any of the sorted keys starts with the prefix: if one does, the first one from there does."""
    first = bisect_left(keys, prefix)
    return first < len(keys) and keys[first].startswith(prefix)


def _part_tensors(
    checkpoint: Checkpoint, layout: Layout, base: str, prefix: str, others: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors under a prefix by their names in the layout, without those known not to be needed.

    If a tensor occurs under its older name too, that one keeps its name and is reported as unused.
    """
    named = {
        key[len(prefix) :]: tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix)
        and not key.startswith(others)
        and _why_ignored(layout, key, base, prefix) is None
    }
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        canonical = layout.canonical(name)
        twice = canonical != name and (canonical in named or canonical in tensors)
        tensors[name if twice else canonical] = tensor
    if not all(name in tensors for name in layout.together):
        for name in layout.together:
            tensors.pop(name, None)
    return tensors


def _told_apart(found: dict[str, PartSource]) -> dict[str, PartSource]:
    """The parts, those without a prefix without the tensors that another of them names or ignores."""
    bare = {slot: source for slot, source in found.items() if not source.prefix}
    if len(bare) < 2:
        return found
    names: dict[str, set[str]] = {}
    for slot, source in bare.items():
        with suppress(CheckpointError):  # reported when the part is used
            proven = source.prove()
            names[slot] = set() if proven is None else set(source.layout.key_map(proven))
    for slot, source in bare.items():
        theirs = {name for other, known in names.items() if other != slot for name in known}
        theirs |= {
            name
            for name in source.tensors
            for other in bare.values()
            if other is not source and _why_ignored(other.layout, name, other.base, other.prefix)
        }
        theirs -= names.get(slot, set())
        tensors = {name: tensor for name, tensor in source.tensors.items() if name not in theirs}
        found[slot] = replace(source, tensors=tensors)
    return found


def leftovers(checkpoint: Checkpoint, sources: Iterable[PartSource]) -> tuple[dict[str, str], list[str]]:
    """The tensors of a file outside its parts: ({key: why it is not needed}, unknown keys).

    A key under the prefix of a part counts as part of it, even if its network does not use it.
    """
    mine = [source for source in sources if source.checkpoint is checkpoint]
    known: dict[str, str] = {}
    unknown: list[str] = []
    for key in checkpoint.tensors:
        reasons = (_why_ignored(s.layout, key, s.base, s.prefix) for s in mine)
        why = next(filter(None, reasons), None)
        if why is None and not any(key.startswith(_marks(s.layout, s.prefix)) for s in mine):
            why = ignored(key)
        if why is not None:
            known[key] = why
        elif not any(key.startswith(source.prefix) for source in mine):
            unknown.append(key)
    return known, unknown


def ignored(key: str) -> str | None:
    """Why a key outside all parts is not needed, or None for an unknown key."""
    if key in IGNORED:
        return IGNORED[key]
    return next((why for prefix, why in IGNORED_PREFIXES.items() if key.startswith(prefix)), None)


def _why_ignored(layout: Layout, key: str, base: str, prefix: str) -> str | None:
    """Why a key of this part is not needed, or None."""
    if not base and not key.startswith(_marks(layout, prefix)) and (why := ignored(key)) is not None:
        return why  # a file of one part without a prefix, with other data of its trainer
    for name, why in layout.extras.items():
        names = (base + name, prefix + name)
        if key in names or (name.endswith(".") and key.startswith(names)):
            return why
    if base and not key.startswith(base):
        return next((why for other, why in layout.beside.items() if key.startswith(other)), None)
    return None


def _marks(layout: Layout, prefix: str) -> tuple[str, ...]:
    return tuple(prefix + mark for mark in layout.marks)


EMA = "model_ema."


def ema_key(name: str, prefix: str = "") -> str:
    """The key of the average of a U-Net tensor, given its name after `prefix` (CompVis's `LitEma`)."""
    return EMA + "diffusion_model" + name.removeprefix(prefix).replace(".", "")


def has_ema(checkpoint: Checkpoint) -> bool:
    """Whether a file contains averaged weights, not only the counters that every training run stores."""
    counters = (f"{EMA}decay", f"{EMA}num_updates")
    return any(key.startswith(EMA) and key not in counters for key in checkpoint.tensors)


def averaged(source: PartSource) -> PartSource:
    """The U-Net with the averaged weights of its file. Raises CheckpointError without them."""
    checkpoint = source.checkpoint
    if not has_ema(checkpoint):
        hint = " (in a diffusers folder the U-Net's weights are the averaged ones, if any were kept)"
        raise CheckpointError(
            f"{source.name} contains no averaged (EMA) weights: load it with ema=False"
            + (hint if checkpoint.format == "diffusers" else "")
        )
    missing = [name for name in source.tensors if ema_key(name) not in checkpoint.tensors]
    if missing or source.layout.name != "compvis":
        raise CheckpointError(f"{source.name}: no averaged weights for {next(iter(missing), 'its U-Net')}")
    return replace(source, tensors={name: checkpoint.tensors[ema_key(name)] for name in source.tensors})
