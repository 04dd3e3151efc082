"""Reading diffusers folders: a subfolder for each part, with a `config.json` and its weights.

    model_index.json                    which class each part is of
    unet/config.json                    unet/diffusion_pytorch_model.safetensors
    vae/config.json                     vae/diffusion_pytorch_model.safetensors
    text_encoder/config.json            text_encoder/model.safetensors
    scheduler/scheduler_config.json     tokenizer/tokenizer_config.json, …

Weights may instead be `.bin` (a torch pickle), have a variant in their name
(`diffusion_pytorch_model.fp16.safetensors`), or be cut in shards that an index file lists. A folder of one
part (`vae/` alone) is read the same way. Nothing here needs the diffusers package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm_core.errors import CheckpointError
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import printable

# The files of a folder, by the names under which `read` keeps them.
MODEL_INDEX = "model_index.json"
UNET = "unet/config.json"
AUTOENCODER = "vae/config.json"
TEXT_ENCODER = "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"
SPECIAL_TOKENS = "tokenizer/special_tokens_map.json"
ADDED_TOKENS = "tokenizer/added_tokens.json"
ALONE = "config.json"  # of a folder of one part
PREPROCESSOR = "preprocessor_config.json"  # beside a CLIP's

NETWORKS = ("unet", "vae", "text_encoder")  # their tensors' names begin so in a Checkpoint
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
CONFIG = "config.json"
SETTINGS = (
    MODEL_INDEX,
    SCHEDULER,
    TOKENIZER,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
)
ADAPTER_FILES = (
    "adapter_model.safetensors",  # PEFT's
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",  # diffusers'
    "pytorch_lora_weights.bin",
)
MAX_JSON = 2**25  # bytes: an index of shards is the largest


def is_diffusers_folder(path: Path) -> bool:
    """Whether this folder is a whole model or one part of it."""
    return _is_whole(path) or ((path / CONFIG).is_file() and bool(_weight_files(path, None)))


def _is_whole(path: Path) -> bool:
    return (path / MODEL_INDEX).is_file() or (path / UNET).is_file()


def read_folder(path: Path, variant: str | None, read: Callable[[Path], Any]) -> tuple[Any, ...]:
    """(tensors, metadata, foreign names), with `unet.`, `vae.` and `text_encoder.` before the tensors' names.

    `read` reads one file of weights. `variant` picks files such as "fp16"; without one, the plain file, or
    the only variant that is there. A part of which there are settings and no weights is left out. The
    metadata are the parsed JSON files, by their path in the folder.
    """
    tensors: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    foreign: list[str] = []
    alone = (path / CONFIG).is_file() and not _is_whole(path)
    for name in () if alone else SETTINGS:
        if (path / name).is_file():
            metadata[name] = read_json(path / name)
    if variant is not None and not _has_variant(path, variant):
        raise CheckpointError(f"no file of weights of the variant {variant!r}")
    for folder in ("",) if alone else NETWORKS:
        if (path / folder).is_dir() and not (path / folder / CONFIG).is_file() and not alone:
            raise CheckpointError(f"{path / folder}: it has no {CONFIG}")
        if (path / folder / CONFIG).is_file():
            prefix = f"{folder}." if folder else ""
            metadata[f"{folder}/{CONFIG}".lstrip("/")] = read_json(path / folder / CONFIG)
            for file in _weight_files(path / folder, variant):
                part = read(file)
                twice = [key for key in part.tensors if prefix + key in tensors]
                if twice:
                    raise CheckpointError(f"{file}: {twice[0]} is in another shard, too")
                tensors |= {prefix + key: value for key, value in part.tensors.items()}
                foreign += part.foreign
    if not tensors:
        raise CheckpointError("the folder holds no weights")
    return tensors, metadata, tuple(dict.fromkeys(foreign))


def _has_variant(path: Path, variant: str) -> bool:
    folders = [path, *(path / name for name in NETWORKS)]
    files = (entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir())
    return any(f".{variant}." in name or f".{variant}-" in name for name in files)


def read_json(path: Path) -> dict[str, Any]:
    """A settings file. Raises CheckpointError where it is too large or no JSON mapping."""
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path}: larger than {MAX_JSON:,} bytes")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    data = parse_json(text, str(path), CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a mapping but a {type(data).__name__}")
    return data


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files that hold a part's weights: one, or the shards that an index lists, or none.

    Raises CheckpointError where there are some, and none that was asked for.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    # model.safetensors, model.fp16.safetensors, model.safetensors.index.json, ….index.fp16.json
    pattern = re.compile(
        rf"(?:{'|'.join(STEMS)})(?:\.(?P<v>\w+))?\.(?P<kind>safetensors|bin)"
        r"(?P<index>\.index(?:\.(?P<iv>\w+))?\.json)?"
    )
    found: dict[tuple[str, str], str] = {}
    for file in names:
        if (match := pattern.fullmatch(file)) is not None:
            version = match["v"] or match["iv"] or ""
            found.setdefault((version, match["kind"]), file)
    variants = list(dict.fromkeys(version for version, _ in found))
    wanted = variant if variant is not None else "" if "" in variants or len(variants) != 1 else variants[0]
    # A part that lacks the variant is taken in its plain form, as diffusers does.
    for version in dict.fromkeys((wanted, "" if variant is not None else wanted)):
        for kind in ("safetensors", "bin"):
            if (version, kind) in found:
                file = found[version, kind]
                return _shards(folder, file) if file.endswith(".json") else [folder / file]
    if not found:
        return []
    there = ", ".join(sorted(found.values()))
    asked = f" of the variant {variant!r}" if variant else " without a variant; say which with variant="
    raise CheckpointError(f"{folder}: no file of weights{asked}; there is {there}")


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index}: it has no weight_map")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise CheckpointError(f"{folder / index}: a shard lies outside its folder: {file[:80]!r}")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / index}: the shard {printable(file[:80])} is missing")
    return [folder / file for file in files]


def adapter_file(path: Path) -> Path:
    """The file of weights in an adapter's folder; a file is itself."""
    if not path.is_dir():
        return path
    for name in ADAPTER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: a folder without an adapter; expected one of {', '.join(ADAPTER_FILES)}")
