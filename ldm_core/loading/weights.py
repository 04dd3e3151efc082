"""From files to the parameters of the networks: parts found, configuration resolved, shapes checked.

This is the half of `load` that needs no arithmetic: the parameters are views of memory-mapped files,
whatever the layout of the files and however many they are. Converting and merging work on them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.checkpoint.key_map import KeyMap, Problems, matched, report
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.diffusers_config import Words
from ldm_core.loading.evidence import added_words_of
from ldm_core.loading.families import other_family
from ldm_core.loading.parts import PARTS, Part, PartSource, ema_key, find_parts, has_ema, leftovers
from ldm_core.loading.resolve import resolve_config, resolve_part
from ldm_core.loading.stored_schedule import check_schedule
from ldm_core.nn.placement import blank
from ldm_core.unet.network import UNet

UNUSED = "that no network of the model takes"


@dataclass(frozen=True)
class Weights:
    """Everything that files say about a model.

    configs      the configuration; several, where nothing says what the U-Net predicts
    parameters   by part and name, as views of the mapped files (or read, without `mmap`), in their own types
    keys         the files' names of the parameters
    networks     the networks on the meta device, without weights
    checkpoint   the main file
    added_words  what the text encoder knows beyond CLIP's vocabulary
    """

    configs: list[LatentDiffusionConfig]
    parameters: dict[Part, dict[str, Tensor]]
    keys: dict[Part, dict[str, str]]
    networks: dict[Part, nn.Module]
    checkpoint: Checkpoint
    added_words: Words = ()


_NETWORKS: dict[Part, Callable[[Any], nn.Module]] = {
    "text_encoder": CLIPTextEncoder,
    "unet": UNet,
    "autoencoder": AutoencoderKL,
}


def build_networks(config: LatentDiffusionConfig, device: Any = "cpu") -> dict[Part, nn.Module]:
    """The three networks, freshly initialised; on "meta", without any weights."""
    with torch.device(device):
        return {part: network(getattr(config, part)).eval() for part, network in _NETWORKS.items()}


def blank_networks(config: LatentDiffusionConfig) -> dict[Part, nn.Module]:
    """The three networks on the meta device, in a moment."""
    return {part: blank_network(part, getattr(config, part)) for part in PARTS}


def blank_network(part: Part, config: Any) -> nn.Module:
    """One of them."""
    return blank(_NETWORKS[part], config)


def open_weights(
    path: str | Path,
    *,
    config: str | Path | LatentDiffusionConfig | None = None,
    prediction: str | None = None,
    ema: bool = False,
    variant: str | None = None,
    parts: Mapping[Part, str | Path | None] | None = None,
    mmap: bool = True,
) -> Weights:
    """Open a model's file or folder, with other files for some of its parts. The options are `load`'s.

    Raises CheckpointError for a file that cannot be read, lacks a part, or does not fit its configuration.
    """
    checkpoint = read(path, variant=variant, mmap=mmap)
    _refuse_other_families(checkpoint)
    own = find_parts(checkpoint)
    sources = {**own, **_replacements(parts or {}, variant, mmap)}
    _require_all(checkpoint, sources)
    if ema:
        sources["unet"] = _averaged(sources["unet"])
    configs = resolve_config(checkpoint, sources, config, prediction)
    check_schedule(sources["unet"].checkpoint, configs[0])
    networks = blank_networks(configs[0])
    parameters: dict[Part, dict[str, Tensor]] = {}
    keys: dict[Part, dict[str, str]] = {}
    for part in PARTS:
        key_map = sources[part].key_map(getattr(configs[0], part))
        parameters[part] = _parameters(sources[part], key_map, networks[part])
        averaged = part == "unet" and ema
        keys[part] = {
            name: ema_key(key.removeprefix(sources[part].prefix)) if averaged else key
            for key, entry in key_map.items()
            for name in entry.parameters
        }
    _refuse_leftovers(checkpoint, own)
    words = added_words_of(sources["text_encoder"].checkpoint, configs[0].text_encoder.vocab_size)
    return Weights(configs, parameters, keys, networks, checkpoint, words)


def open_part(
    path: str | Path,
    part: Part,
    config: str | LatentDiffusionConfig | None,
    variant: str | None,
    mmap: bool = True,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """One part of a file, whatever else is in it: its network without weights, and its parameters."""
    if part not in PARTS:
        raise CheckpointError(f"the part must be one of {', '.join(PARTS)}, not {part!r}")
    source = _replacements({part: path}, variant, mmap)[part]
    resolved: Any = resolve_part(source, config)
    network = blank_network(part, resolved)
    return network, _parameters(source, source.key_map(resolved), network)


def _parameters(source: PartSource, key_map: KeyMap, network: nn.Module) -> dict[str, Tensor]:
    """One part's parameters. Raises CheckpointError naming what is missing, misshapen or left over."""
    parameters, problems = _matched(source, key_map, network)
    report(source.checkpoint.path.name, problems)
    return parameters


def _matched(source: PartSource, key_map: KeyMap, network: nn.Module) -> tuple[dict[str, Tensor], Problems]:
    tensors = source.file_tensors()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    parameters, problems = matched(key_map, tensors, shapes)
    unused = [key for key in tensors if key not in key_map]
    return parameters, {**problems, UNUSED: unused}


def misfits(sources: Mapping[Part, PartSource], configs: Mapping[Part, Any]) -> Problems:
    """What keeps these parts from being loaded as of these configurations: names, by what is wrong.

    The parts' tensors may be on the meta device.
    """
    found: Problems = {}
    for part, source in sources.items():
        network = blank_network(part, configs[part])
        for what, names in _matched(source, source.key_map(configs[part]), network)[1].items():
            found.setdefault(what, []).extend(names)
    return {what: names for what, names in found.items() if names}


def _refuse_other_families(checkpoint: Checkpoint) -> None:
    other = other_family(checkpoint.tensors)
    if other is not None:
        raise CheckpointError(f"{checkpoint.path.name} is {other}")


def _replacements(
    parts: Mapping[Part, str | Path | None], variant: str | None, mmap: bool
) -> dict[Part, PartSource]:
    """The parts that come from files of their own, which may be whole models."""
    sources: dict[Part, PartSource] = {}
    for part, path in parts.items():
        if path is None:
            continue
        checkpoint = read(path, variant=variant, mmap=mmap)
        _refuse_other_families(checkpoint)
        found = find_parts(checkpoint)
        if part not in found:
            raise CheckpointError(
                f"{checkpoint.path.name} was given as the {_words(part)}, but holds none; {_held(checkpoint)}"
            )
        _refuse_leftovers(checkpoint, found)
        sources[part] = found[part]
    return sources


def _refuse_leftovers(checkpoint: Checkpoint, found: Mapping[Part, PartSource]) -> None:
    unknown = leftovers(checkpoint, found.values())[1]
    report(checkpoint.path.name, {UNUSED: unknown})


def _words(part: Part) -> str:
    return {"text_encoder": "text encoder", "unet": "U-Net", "autoencoder": "autoencoder"}[part]


def _article(part: Part) -> str:
    return f"{'an' if part == 'autoencoder' else 'a'} {_words(part)}"


def _held(checkpoint: Checkpoint) -> str:
    """What a file does hold, for an error."""
    found = find_parts(checkpoint)
    if found:
        return "it holds " + " and ".join(
            f"{_article(part)} ({source.layout.name} names)" for part, source in found.items()
        )
    keys = ", ".join(repr(key) for key in list(checkpoint.tensors)[:3])
    return (
        f"it holds no part of a latent diffusion model under names known here (its keys are such as {keys})"
    )


def _require_all(checkpoint: Checkpoint, sources: Mapping[Part, PartSource]) -> None:
    absent = [part for part in PARTS if part not in sources]
    if absent:
        what = " and no ".join(_words(part) for part in absent)
        options = ", ".join(f"{part}=FILE" for part in absent)
        raise CheckpointError(
            f"{checkpoint.path.name} holds no {what}; {_held(checkpoint)}. Give the rest: load(…, {options})"
        )


def _averaged(source: PartSource) -> PartSource:
    """The U-Net with its averaged weights, which lie in the same file under names of their own."""
    checkpoint = source.checkpoint
    if not has_ema(checkpoint):
        hint = " (in a diffusers folder the U-Net's weights are the averaged ones, if any were kept)"
        raise CheckpointError(
            f"{checkpoint.path.name} holds no averaged (EMA) weights: load it with ema=False"
            + (hint if checkpoint.format == "diffusers" else "")
        )
    missing = [name for name in source.tensors if ema_key(name) not in checkpoint.tensors]
    if missing or source.layout.name != "compvis":
        raise CheckpointError(
            f"{checkpoint.path.name}: no averaged weights for {next(iter(missing), 'its U-Net')}"
        )
    return replace(source, tensors={name: checkpoint.tensors[ema_key(name)] for name in source.tensors})
