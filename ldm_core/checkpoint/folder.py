"""Reading diffusers folders, which have a subfolder with `config.json` and weights for each part.

    model_index.json                    the class of each part
    unet/config.json                    unet/diffusion_pytorch_model.safetensors
    vae/config.json                     vae/diffusion_pytorch_model.safetensors
    text_encoder/config.json            text_encoder/model.safetensors
    scheduler/scheduler_config.json     tokenizer/tokenizer_config.json, …

Weights can also be `.bin` files (PyTorch pickles), have a variant in their name
(`diffusion_pytorch_model.fp16.safetensors`), or be split into shards that an index file lists. A folder of a
single part, such as `vae/`, is read in the same way. The diffusers package is not needed.
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

# The files of a folder, named as in the metadata that `read` returns.
MODEL_INDEX = "model_index.json"
UNET = "unet/config.json"
AUTOENCODER = "vae/config.json"
VQ_AUTOENCODER = "vqvae/config.json"  # of LDM's pipelines
TEXT_ENCODER = "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
LOW_RES_SCHEDULER = "low_res_scheduler/scheduler_config.json"  # of the x4 upscaler's small pictures
# Of stable unCLIP.
IMAGE_ENCODER = "image_encoder/config.json"
IMAGE_NORMALIZER = "image_normalizer/config.json"
IMAGE_NOISING_SCHEDULER = "image_noising_scheduler/scheduler_config.json"
FEATURE_EXTRACTOR = "feature_extractor/preprocessor_config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"
SPECIAL_TOKENS = "tokenizer/special_tokens_map.json"
ADDED_TOKENS = "tokenizer/added_tokens.json"
ALONE = "config.json"  # in a folder of one part
PREPROCESSOR = "preprocessor_config.json"  # beside CLIP's config.json

# Prefixes of their tensors' names in a Checkpoint.
NETWORKS = ("unet", "vae", "vqvae", "text_encoder", "bert")
# What is read only if there is an image normalizer: other pipelines have image encoders, too.
UNCLIP_NETWORKS = ("image_encoder", "image_normalizer")
UNCLIP_SETTINGS = (IMAGE_NOISING_SCHEDULER, FEATURE_EXTRACTOR)
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
CONFIG = "config.json"
SETTINGS = (
    MODEL_INDEX,
    SCHEDULER,
    LOW_RES_SCHEDULER,
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
MAX_JSON = 2**25  # bytes; the largest JSON files are indices of shards


def is_diffusers_folder(path: Path) -> bool:
    """Whether the folder contains a diffusers model or a part of one."""
    return _is_whole(path) or ((path / CONFIG).is_file() and bool(_weight_files(path, None)))


def _is_whole(path: Path) -> bool:
    return (path / MODEL_INDEX).is_file() or (path / UNET).is_file()


def read_folder(path: Path, variant: str | None, read: Callable[[Path], Any]) -> tuple[Any, ...]:
    """(tensors, metadata, foreign names). Tensors' names begin with the name of their folder in NETWORKS.

    read: reads one file of weights. variant: the files to read, such as "fp16"; by default the file without a
    variant, or the only variant. A part with settings but without weights is skipped. The metadata are the
    parsed JSON files, by their path in the folder.
    """
    tensors: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    foreign: list[str] = []
    alone = (path / CONFIG).is_file() and not _is_whole(path)
    unclip = (path / IMAGE_NORMALIZER).is_file()
    for name in () if alone else (*SETTINGS, *UNCLIP_SETTINGS) if unclip else SETTINGS:
        if (path / name).is_file():
            metadata[name] = read_json(path / name)
    if variant is not None and not _has_variant(path, variant):
        raise CheckpointError(f"the folder has no weights of the variant {variant!r}")
    for folder in ("",) if alone else (*NETWORKS, *UNCLIP_NETWORKS) if unclip else NETWORKS:
        if (path / folder).is_dir() and not (path / folder / CONFIG).is_file() and not alone:
            raise CheckpointError(f"{path / folder}: no {CONFIG} in this folder")
        if (path / folder / CONFIG).is_file():
            prefix = f"{folder}." if folder else ""
            metadata[f"{folder}/{CONFIG}".lstrip("/")] = read_json(path / folder / CONFIG)
            for file in _weight_files(path / folder, variant):
                part = read(file)
                twice = [key for key in part.tensors if prefix + key in tensors]
                if twice:
                    raise CheckpointError(f"{file}: {twice[0]} is also in another shard")
                tensors |= {prefix + key: value for key, value in part.tensors.items()}
                foreign += part.foreign
    if not tensors:
        raise CheckpointError("the folder contains no weights")
    return tensors, metadata, tuple(dict.fromkeys(foreign))


def _has_variant(path: Path, variant: str) -> bool:
    folders = [path, *(path / name for name in NETWORKS)]
    files = (entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir())
    return any(f".{variant}." in name or f".{variant}-" in name for name in files)


def read_json(path: Path) -> dict[str, Any]:
    """A settings file. Raises CheckpointError if it is too large or not a JSON mapping."""
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path}: expected at most {MAX_JSON:,} bytes, the file is larger")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    data = parse_json(text, str(path), CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON mapping, not a {type(data).__name__}")
    return data


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of a part's weights: one file, the shards that an index lists, or none.

    Raises CheckpointError if there are weights, but not of the wanted variant.
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
    # A part without the variant is read from its plain file, as in diffusers.
    for version in dict.fromkeys((wanted, "" if variant is not None else wanted)):
        for kind in ("safetensors", "bin"):
            if (version, kind) in found:
                file = found[version, kind]
                return _shards(folder, file) if file.endswith(".json") else [folder / file]
    if not found:
        return []
    there = ", ".join(sorted(found.values()))
    asked = f" of the variant {variant!r}" if variant else " without a variant; choose one with variant="
    raise CheckpointError(f"{folder}: no weights{asked}; the folder contains {there}")


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index}: the file has no weight_map")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise CheckpointError(f"{folder / index}: the shard {file[:80]!r} is outside of the folder")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / index}: the shard {printable(file[:80])} is missing")
    return [folder / file for file in files]


def adapter_file(path: Path) -> Path:
    """The file of weights in an adapter's folder. The path of a file is returned unchanged."""
    if not path.is_dir():
        return path
    for name in ADAPTER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: no adapter in this folder; expected one of {', '.join(ADAPTER_FILES)}")
