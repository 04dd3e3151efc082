"""Reads the configuration and parameters of a CLIP from a file or folder, and writes them.

Shapes determine all sizes, but not the number of heads and the activation. The configuration comes from the
first of these sources: the caller; the metadata of a file that this package wrote; a folder's settings
(`config.json` of transformers, `open_clip_config.json` of open_clip); the sizes stored in OpenAI's own files.
Any other file needs `config=`, and the error lists the matching presets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.folder import ALONE, PREPROCESSOR, read_json
from ldm_core.checkpoint.key_map import report, to_file, to_parameters
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.values import all_finite
from ldm_core.checkpoint.writer import WRITERS, Pending, write_then_move
from ldm_core.clip.config import PRESETS, CLIPConfig, preset
from ldm_core.clip.names import LAYOUTS, CLIPLayout, openai_map
from ldm_core.clip.open_clip_settings import OPEN_CLIP_CONFIG, open_clip_parts
from ldm_core.clip.settings import clip_parts
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import shown

CONFIG_KEY = "ldm_core.clip_config"
# The weights in open_clip's folders, and the prefixes that trainers add to all names.
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PREFIXES = ("", "module.", "model.")
SIZES = (
    "image width",
    "patch size",
    "image positions",
    "projection_dim",
    "vocab_size",
    "text width",
    "context_length",
    "image layers",
    "text layers",
)
OPENAI_MARK = "input_resolution"  # a tensor that only OpenAI's own files have


@dataclass(frozen=True)
class CLIPSource:
    """A CLIP in a file: its tensors, named as in the layout, without ignored ones."""

    checkpoint: Checkpoint
    layout: CLIPLayout
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Mapping[str, Any]]  # the folder's JSON files, by name

    @property
    def name(self) -> str:
        return self.checkpoint.path.name

    def sizes(self) -> tuple[int, ...]:
        """The sizes in the shapes, in the order of SIZES. Raises CheckpointError if any is missing."""
        shapes = {name: self.tensors[name].shape for name in self.layout.sizes if name in self.tensors}
        absent = [name for name in self.layout.sizes if name not in shapes]
        ranks = dict(zip(self.layout.sizes, (4, 2, 2, 2, 2), strict=True))
        odd = [f"{name}: {tuple(shape)}" for name, shape in shapes.items() if len(shape) != ranks[name]]
        report(self.name, {"missing": absent, "of the wrong shape": odd})
        patches, places, projection, tokens, positions = shapes.values()
        joint = projection[1] if self.layout.name == "openai" else projection[0]
        blocks = (len(self._blocks(mark)) for mark in (self.layout.image_mark, self.layout.text_mark))
        return (patches[0], patches[3], places[0], joint, *tokens, positions[0], *blocks)

    def _blocks(self, mark: str) -> set[str]:
        return {key[len(mark) :].split(".")[0] for key in self.tensors if key.startswith(mark)}


def sizes_of(config: CLIPConfig) -> tuple[int, ...]:
    """The sizes of a configuration that determine its tensors' shapes, in the order of SIZES."""
    image, text = config.image_encoder, config.text_encoder
    return (
        image.width,
        image.patch_size,
        1 + image.patches,
        image.projection_dim,
        text.vocab_size,
        text.width,
        text.context_length,
        image.layers,
        text.layers,
    )


def find_clip(path: str | Path, mmap: bool = True) -> CLIPSource:
    """Read a file, or a folder of transformers' or open_clip's, and find the CLIP in it.

    mmap: False reads the tensors into memory.

    Raises CheckpointError for a file that cannot be read or holds no CLIP, or one half only.
    """
    path = file = Path(path)
    folder = path.parent if path.name in OPEN_CLIP_WEIGHTS else path
    wanted = [ALONE, PREPROCESSOR] if (path / ALONE).is_file() else [OPEN_CLIP_CONFIG]
    settings = {name: read_json(folder / name) for name in wanted if (folder / name).is_file()}
    if OPEN_CLIP_CONFIG in settings and path.is_dir():
        file = next((path / name for name in OPEN_CLIP_WEIGHTS if (path / name).is_file()), path)
    checkpoint = read(file, mmap=mmap)
    for layout in LAYOUTS:
        for prefix in PREFIXES:
            marks = (prefix + layout.image_mark, prefix + layout.text_mark)
            halves = [any(key.startswith(mark) for key in checkpoint.tensors) for mark in marks]
            if all(halves):
                return CLIPSource(checkpoint, layout, _wanted(checkpoint, layout, prefix), settings)
            if any(halves):
                half = "image" if halves[0] else "text"
                raise CheckpointError(
                    f"{path.name} contains only the {half} encoder of a CLIP; expected both encoders"
                )
    if any("visual.layer1." in key for key in checkpoint.tensors):
        raise CheckpointError(
            f"{path.name} is a CLIP with a ResNet, which is not supported; expected a vision transformer"
        )
    keys = ", ".join(map(shown, list(checkpoint.tensors)[:3]))
    raise CheckpointError(
        f"{path.name} contains no CLIP with known tensor names (the names in the file are {keys} …)"
    )


def _wanted(checkpoint: Checkpoint, layout: CLIPLayout, prefix: str) -> dict[str, Tensor]:
    """The tensors without the prefix and ignored ones. Names without the prefix stay unchanged."""
    named = {key.removeprefix(prefix): tensor for key, tensor in checkpoint.tensors.items()}
    return {key: tensor for key, tensor in named.items() if key not in layout.extras}


def resolve_config(source: CLIPSource, config: str | CLIPConfig | None) -> CLIPConfig:
    """The configuration of a file. Raises CheckpointError if it is unknown or contradicts the shapes."""
    checkpoint, sizes = source.checkpoint, source.sizes()
    try:
        if config is not None:
            resolved = preset(config) if isinstance(config, str) else config
            origin = "the given configuration"
        elif CONFIG_KEY in checkpoint.metadata:
            stated = parse_json(
                checkpoint.metadata[CONFIG_KEY], "invalid CLIP configuration", CheckpointError
            )
            resolved = CLIPConfig.from_dict(stated)
            origin = "the file's own metadata"
        elif OPEN_CLIP_CONFIG in source.settings:
            resolved = CLIPConfig(*open_clip_parts(source.settings[OPEN_CLIP_CONFIG]))
            origin = OPEN_CLIP_CONFIG
        elif ALONE in source.settings:
            resolved, origin = CLIPConfig(*clip_parts(source.settings)), ALONE
        else:
            resolved, origin = _recognised(source, sizes), "the tensors"
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    if sizes_of(resolved) != sizes:
        named = zip(SIZES, sizes_of(resolved), sizes, strict=True)
        wrong = [f"{name} {a}, but {b} in the tensors" for name, a, b in named if a != b]
        raise CheckpointError(f"{source.name} contradicts {origin}: {'; '.join(wrong)}")
    return resolved


def _recognised(source: CLIPSource, sizes: tuple[int, ...]) -> CLIPConfig:
    fitting = {name: known for name, known in PRESETS.items() if sizes_of(known) == sizes}
    openai = [known for name, known in fitting.items() if not name.startswith("open_clip/")]
    if OPENAI_MARK in source.checkpoint.tensors and openai:
        return openai[0]
    names = " or ".join(f"config={name!r}" for name in fitting) or "config= a CLIPConfig"
    raise CheckpointError(
        "the tensors do not determine the number of heads and the activation (OpenAI's models use "
        f"quick_gelu, most of open_clip's use gelu); choose {names}, or load a folder with its settings"
    )


def parameters_of(
    source: CLIPSource, config: CLIPConfig, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The parameters by name, as views of the file if possible.

    Raises CheckpointError, listing tensors that are missing, unexpected, of another shape or not finite.
    """
    key_map = source.layout.key_map(config.image_encoder, config.text_encoder)
    parameters = to_parameters(key_map, source.tensors, shapes, source=source.name)
    problems = {
        "not used by the model": [key for key in source.tensors if key not in key_map],
        "with values that are not finite": [k for k in key_map if not all_finite(source.tensors[k])],
    }
    report(source.name, problems)
    return parameters


def write_clip(
    config: CLIPConfig, parameters: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None
) -> None:
    """Write a CLIP with the names of OpenAI and open_clip, and the configuration in the metadata.

    The file is written atomically. Raises CheckpointError for an unknown ending, or if it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.suffix not in WRITERS:
        raise CheckpointError(
            f"{path}: expected a name that ends in {', '.join(WRITERS)}, got {path.suffix!r}"
        )
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(f"dtype must be a floating-point type, not {dtype}")
    if any(value.is_meta for value in parameters.values()):
        raise CheckpointError("the model is on the meta device and has no values to save")
    tensors = to_file(openai_map(config.image_encoder, config.text_encoder), parameters)
    pending = {}
    for key, value in tensors.items():
        cast = value.detach().to(dtype or value.dtype)
        pending[key] = Pending(cast.dtype, tuple(cast.shape), lambda cast=cast: cast)  # type: ignore[misc]
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
    write_then_move(path, lambda target: WRITERS[path.suffix](pending, metadata, target))
