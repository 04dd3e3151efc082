"""Open files as parameters of networks: find parts, collect claims, decide the configuration, check shapes.

This half of `load` computes nothing: the parameters are views of memory-mapped files of any layout. `convert`
and `merge_checkpoints` use it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import Problems, report
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.claims import Claim
from ldm_core.loading.decide import Decision, decide, decide_part, needed
from ldm_core.loading.diffusers_config import Words
from ldm_core.loading.evidence import Config, Sources, evidence, part_evidence
from ldm_core.loading.families import other_family
from ldm_core.loading.find import UNUSED, PartSource, averaged, ema_key, find_parts, has_ema, leftovers
from ldm_core.loading.parts import part_configs, part_named, part_of, part_words
from ldm_core.loading.prediction import undecided
from ldm_core.nn.placement import blank

FileOrNone = str | Path | None
PARTS = ("text_encoder", "unet", "autoencoder", "conditioner")  # that may come from files of their own


@dataclass(frozen=True)
class Weights:
    """The contents of the files of a model or of a single part.

    configs      the configurations of the parts, by slot
    parameters   by slot and name, in the files' dtypes: views of the mapped files, or copies without `mmap`
    keys         the file key of each parameter, by slot and name
    networks     by slot, on the meta device
    checkpoint   the main file
    sources      the source of each part, by slot
    claims       the claims from which the configuration was decided
    decision     the whole model's configuration; None for a single part
    """

    configs: dict[str, Any]
    parameters: dict[str, dict[str, Tensor]]
    keys: dict[str, dict[str, str]]
    networks: dict[str, nn.Module]
    checkpoint: Checkpoint
    sources: dict[str, PartSource]
    claims: list[Claim]
    decision: Decision | None = None

    @property
    def added_words(self) -> Words:
        """The words added to the tokenizer's vocabulary."""
        return next((claim.value for claim in self.claims if claim.field == "added_words"), ())

    @property
    def config(self) -> Any:
        """Of the model or the part. Raises CheckpointError if a U-Net's prediction type is not known."""
        if self.decision is None:
            return next(iter(self.configs.values()))
        if self.decision.prediction is None:
            raise undecided(self.checkpoint.path.name, self.decision.choices)
        return self.decision.config

    def flat(self) -> dict[str, Tensor]:
        """The parameters by "slot.name"."""
        return {f"{slot}.{n}": t for slot, tensors in self.parameters.items() for n, t in tensors.items()}


def build_networks(config: LatentDiffusionConfig, device: Any = "cpu") -> dict[str, nn.Module]:
    """A model's networks by slot, newly initialised, or without weights on device "meta"."""
    with torch.device(device):
        return {slot: part_of(own).network(own).eval() for slot, own in part_configs(config).items()}


def blank_network(config: Any) -> nn.Module:
    """The network of a configuration, on the meta device."""
    return blank(part_of(config).network, config)


def open_weights(
    path: str | Path,
    *,
    config: Config = None,
    prediction: str | None = None,
    ema: bool | None = None,
    variant: str | None = None,
    parts: Mapping[str, FileOrNone] | None = None,
    mmap: bool = True,
    alone: bool = False,
) -> Weights:
    """Open a model's file or folder, with other files for some of its parts. The options are those of `load`.

    alone: open a file that contains a single part as that part.
    Raises CheckpointError for a file that cannot be read, lacks a part, or does not fit its configuration.
    """
    checkpoint = _read(path, variant, mmap)
    found = find_parts(checkpoint)
    if alone and len(found) == 1 and not (ema or prediction or any((parts or {}).values())):
        _refuse_leftovers(checkpoint, found)
        return _open_alone(next(iter(found.values())), config)
    own = {slot: source for slot, source in found.items() if source.part.fills}
    if found and not own:
        source = next(iter(found.values()))
        raise CheckpointError(
            f"{source.name} contains no latent diffusion model; {held(checkpoint, found)}: use {source.door}"
        )
    sources = {**own, **_replacements(parts or {}, variant, mmap)}
    claims = evidence(checkpoint, sources, config, prediction)
    _require_parts(checkpoint, found, sources, claims)
    decision = decide(checkpoint.path.name, claims)
    if ema is None:
        ema = decision.config.use_ema and _has_averages(sources)
    if ema:
        sources = {s: averaged(one) if "prediction" in one.part.brings else one for s, one in sources.items()}
    opened = _opened(checkpoint, sources, part_configs(decision.config), claims, decision, ema)
    _refuse_leftovers(checkpoint, own)
    return opened


def _has_averages(sources: Sources) -> bool:
    return any(has_ema(one.checkpoint) for one in sources.values() if "prediction" in one.part.brings)


def open_part(
    path: str | Path, name: str, config: Any = None, variant: str | None = None, mmap: bool = True
) -> Weights:
    """Open one part of a file, which may contain others."""
    part = part_named(name)
    source = _replacements({part.slot: path}, variant, mmap)[part.slot]
    if source.part is not part:
        raise CheckpointError(f"{source.name} contains {source.part.article}, not {part.article}")
    return _open_alone(source, config)


def _open_alone(source: PartSource, config: Any) -> Weights:
    slot, claims = source.part.slot, part_evidence(source, config)
    resolved = decide_part(source.name, source.part, claims)
    return _opened(source.checkpoint, {slot: source}, {slot: resolved}, claims)


def _opened(
    checkpoint: Checkpoint,
    sources: dict[str, PartSource],
    configs: dict[str, Any],
    claims: list[Claim],
    decision: Decision | None = None,
    ema: bool = False,
) -> Weights:
    networks = {slot: blank_network(config) for slot, config in configs.items()}
    parameters: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, dict[str, str]] = {}
    for slot, config in configs.items():
        parameters[slot], keys[slot], problems = sources[slot].parameters(config, networks[slot])
        report(sources[slot].name, problems)
        if ema and "prediction" in sources[slot].part.brings:
            keys[slot] = {name: ema_key(key, sources[slot].prefix) for name, key in keys[slot].items()}
    return Weights(configs, parameters, keys, networks, checkpoint, sources, claims, decision)


def misfits(sources: Sources, configs: Mapping[str, Any]) -> Problems:
    """The tensors that keep these parts from being loaded with these configurations, by kind of problem.

    The tensors may be on the meta device.
    """
    found: Problems = {}
    for slot, config in configs.items():
        for what, names in sources[slot].parameters(config, blank_network(config))[2].items():
            found.setdefault(what, []).extend(names)
    return {what: names for what, names in found.items() if names}


def _read(path: str | Path, variant: str | None, mmap: bool) -> Checkpoint:
    checkpoint = read(path, variant=variant, mmap=mmap)
    _refuse_other(checkpoint)
    return checkpoint


def _refuse_other(checkpoint: Checkpoint) -> None:
    other = other_family(checkpoint.tensors)
    if other is not None:
        raise CheckpointError(f"{checkpoint.path.name} is {other}")


def _replacements(files: Mapping[str, FileOrNone], variant: str | None, mmap: bool) -> dict[str, PartSource]:
    """The parts from separate files, which may contain whole models."""
    sources = {}
    for slot, path in files.items():
        if path is None:
            continue
        checkpoint = read(path, variant=variant, mmap=mmap)
        found = find_parts(checkpoint)
        if slot not in found or found[slot].part.fills:  # a part outside of models is another family
            _refuse_other(checkpoint)
        if slot not in found:
            raise CheckpointError(
                f"{checkpoint.path.name} was given as the {part_words(slot)}, but contains none; "
                f"{held(checkpoint, found)}"
            )
        _refuse_leftovers(checkpoint, found)
        sources[slot] = found[slot]
    return sources


def _require_parts(checkpoint: Checkpoint, found: Sources, sources: Sources, claims: Iterable[Claim]) -> None:
    absent = [slot for slot in needed(checkpoint, claims) if slot not in sources]
    if "unet" in absent and has_ema(checkpoint):
        raise CheckpointError(
            f"{checkpoint.path.name} contains only averaged (EMA) weights of a U-Net, whose names have "
            "no dots; expected the tensors model.diffusion_model.*, too"
        )
    if absent:
        what = " and no ".join(map(part_words, absent))
        options = ", ".join(f"{slot}=FILE" for slot in absent)
        raise CheckpointError(
            f"{checkpoint.path.name} contains no {what}; {held(checkpoint, found)}. "
            f"Pass the missing parts: load(…, {options})"
        )


def _refuse_leftovers(checkpoint: Checkpoint, found: Sources) -> None:
    report(checkpoint.path.name, {UNUSED: leftovers(checkpoint, found.values())[1]})


def held(checkpoint: Checkpoint, found: Sources) -> str:
    """The contents of a file, for an error."""
    if found:
        held = (f"{source.part.article} ({source.layout.name} names)" for source in found.values())
        return f"it contains {' and '.join(held)}"
    keys = ", ".join(repr(key) for key in list(checkpoint.tensors)[:3])
    return f"it contains no known part of a latent diffusion model (keys such as {keys})"
