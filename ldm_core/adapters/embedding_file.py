"""Reads the files of textual inversion (Gal et al. 2022, arXiv:2208.01618).

There are four formats, which differ in the names of their tensors:

    the paper's authors, .pt      {"string_to_token": …, "string_to_param": {"*": (n, width)}}
    AUTOMATIC1111's web UI, .pt   the same with "name" and "step" beside it
    diffusers, .bin, .safetensors {"<cat-toy>": (width,) or (n, width)}
    kohya-ss, .safetensors        {"emb_params": (n, width)}

The embedding's name is "name" or the tensor's key, otherwise the file's name. The key "*" is a placeholder,
not a name.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.values import all_finite
from ldm_core.clip.tokenizer import MAX_WORD_IDS, MAX_WORD_LETTERS
from ldm_core.errors import CheckpointError
from ldm_core.loading.families import other_family
from ldm_core.support.printable import few, printable, shown

AUTHORS, KOHYA = "string_to_param.", "emb_params"
TOKENS = "string_to_token."  # token ids of the placeholders in the authors' files
SDXL = ("clip_l", "clip_g")
EXPECTED = f"expected one tensor, under {AUTHORS}*, {KOHYA} or the embedding's own name"


def read_embedding(path: str | os.PathLike[str]) -> tuple[str, Tensor]:
    """The name and the vectors (n, width), float32 on the CPU, of an embedding file.

    Raises CheckpointError for a file that cannot be read, does not contain exactly one embedding, or has
    non-finite values.
    """
    checkpoint = read(path)
    source = checkpoint.path.name
    key, tensor = _only_tensor(checkpoint)
    if tensor.ndim not in (1, 2) or tensor.numel() == 0 or not tensor.is_floating_point():
        raise CheckpointError(
            f"{source}: {printable(key[:80])} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
            "expected floating-point vectors (width,) or (n, width)"
        )
    name = _name(checkpoint, key)
    if len(name) > MAX_WORD_LETTERS or (tensor.ndim == 2 and len(tensor) > MAX_WORD_IDS):
        raise CheckpointError(
            f"{source}: expected at most {MAX_WORD_IDS} vectors and a name of at most {MAX_WORD_LETTERS} "
            f"characters, got shape {tuple(tensor.shape)} and {len(name):,} characters ({shown(name)})"
        )
    vectors = tensor.reshape(-1, tensor.shape[-1]).to(torch.float32, copy=True)  # (width,) -> (1, width)
    if not all_finite(vectors):
        raise CheckpointError(f"{source}: {printable(key[:80])} has non-finite values")
    return name, vectors


def _only_tensor(checkpoint: Checkpoint) -> tuple[str, Tensor]:
    authors = {key: value for key, value in checkpoint.tensors.items() if key.startswith(AUTHORS)}
    rest = {key: value for key, value in checkpoint.tensors.items() if not key.startswith(TOKENS)}
    tensors = authors or rest  # files of the web UI may also have optimizer state
    source = checkpoint.path.name
    if any(key in tensors for key in SDXL):
        raise CheckpointError(
            f"{source} is an embedding for Stable Diffusion XL, which has two text encoders (its keys are "
            f"{_shown(tensors)}) and is not supported"
        )
    if len(tensors) == 1:
        return next(iter(tensors.items()))
    if any(key == KOHYA or key.startswith(AUTHORS) for key in tensors):
        what = "holds more than one embedding"
    else:
        what = f"is {other_family(tensors) or 'not an embedding'}"
    raise CheckpointError(f"{source} {what}: {EXPECTED}, but it has {_shown(tensors)}")


def _shown(tensors: dict[str, Tensor]) -> str:
    return few([printable(key[:80]) for key in tensors])


def _name(checkpoint: Checkpoint, key: str) -> str:
    """The embedding's name in the file, otherwise the file name without its extension."""
    stored = checkpoint.metadata.get("name") if key.startswith(AUTHORS) else None
    candidates = [stored, "" if key == KOHYA else key.removeprefix(AUTHORS)]
    for name in candidates:
        if isinstance(name, str) and name.strip() not in ("", "*"):
            return name
    return Path(checkpoint.path).stem
