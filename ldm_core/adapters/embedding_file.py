"""Reading learned embeddings: the files of textual inversion (Gal et al. 2022, arXiv:2208.01618).

Four kinds are in use, told apart by their tensors' names:

    the paper's authors, .pt      {"string_to_token": …, "string_to_param": {"*": (n, width)}}
    AUTOMATIC1111's web UI, .pt   the same with "name" and "step" beside it
    diffusers, .bin, .safetensors {"<cat-toy>": (width,) or (n, width)}
    kohya-ss, .safetensors        {"emb_params": (n, width)}

Where a file names the embedding, by "name" or by its key, that is its name; otherwise the file's is. The
key "*" is no name: it stands for whatever word the user takes.
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
TOKENS = "string_to_token."  # the authors' files have the placeholders' ids as tensors
SDXL = ("clip_l", "clip_g")
EXPECTED = f"expected one tensor, under {AUTHORS}*, {KOHYA} or the embedding's own name"


def read_embedding(path: str | os.PathLike[str]) -> tuple[str, Tensor]:
    """The name and the vectors (n, width), float32 on the CPU, of an embedding file.

    Raises CheckpointError for a file that cannot be read, holds something else or more than one embedding,
    or has values that are not finite.
    """
    checkpoint = read(path)
    source = checkpoint.path.name
    key, tensor = _only_tensor(checkpoint)
    if tensor.ndim not in (1, 2) or tensor.numel() == 0 or not tensor.is_floating_point():
        raise CheckpointError(
            f"{source}: {printable(key[:80])} has shape {tuple(tensor.shape)} and type {tensor.dtype}; "
            "expected vectors of real numbers as (width,) or (n, width)"
        )
    name = _name(checkpoint, key)
    if len(name) > MAX_WORD_LETTERS or (tensor.ndim == 2 and len(tensor) > MAX_WORD_IDS):
        raise CheckpointError(
            f"{source}: an embedding has at most {MAX_WORD_IDS} vectors and a name of {MAX_WORD_LETTERS} "
            f"letters, not shape {tuple(tensor.shape)} and {len(name):,} letters ({shown(name)})"
        )
    vectors = tensor.reshape(-1, tensor.shape[-1]).to(torch.float32, copy=True)  # (width,) is (1, width)
    if not all_finite(vectors):
        raise CheckpointError(f"{source}: {printable(key[:80])} has values that are not finite")
    return name, vectors


def _only_tensor(checkpoint: Checkpoint) -> tuple[str, Tensor]:
    authors = {key: value for key, value in checkpoint.tensors.items() if key.startswith(AUTHORS)}
    rest = {key: value for key, value in checkpoint.tensors.items() if not key.startswith(TOKENS)}
    tensors = authors or rest  # the web UI can leave its optimizer's state beside them
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
        what = f"is {other_family(tensors) or 'no embedding'}"
    raise CheckpointError(f"{source} {what}: {EXPECTED}, but it has {_shown(tensors)}")


def _shown(tensors: dict[str, Tensor]) -> str:
    return few([printable(key[:80]) for key in tensors])


def _name(checkpoint: Checkpoint, key: str) -> str:
    """What the file calls the embedding, or the file's own name without its ending."""
    told = checkpoint.metadata.get("name") if key.startswith(AUTHORS) else None
    candidates = [told, "" if key == KOHYA else key.removeprefix(AUTHORS)]
    for name in candidates:
        if isinstance(name, str) and name.strip() not in ("", "*"):
            return name
    return Path(checkpoint.path).stem
