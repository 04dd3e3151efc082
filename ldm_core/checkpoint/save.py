"""Writing a model in the original layout, so that everything that reads CompVis's files can read it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.compvis import OPEN_CLIP, TEXT_ENCODER, model_map
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.key_map import to_file
from ldm_core.config import LatentDiffusionConfig

if TYPE_CHECKING:
    from torch import dtype as Dtype

CONFIG_KEY = "ldm_core.config"  # where the configuration lies in a file's metadata, as JSON


class Model(Protocol):
    """What can be saved: three networks and their configuration."""

    @property
    def config(self) -> LatentDiffusionConfig: ...
    @property
    def text_encoder(self) -> nn.Module: ...
    @property
    def unet(self) -> nn.Module: ...
    @property
    def autoencoder(self) -> nn.Module: ...


def file_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of `model` under the file's keys, buffers that follow from the configuration included."""
    parameters: dict[str, Tensor] = {}
    for part in ("text_encoder", "unet", "autoencoder"):
        module: nn.Module = getattr(model, part)
        parameters |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    key_map = model_map(model.config)
    known = {name for entry in key_map.values() for name in entry.parameters}
    if known != set(parameters):
        odd = sorted(known ^ set(parameters))
        raise CheckpointError(
            f"the model's parameters are not those of its configuration: {len(odd)} differ, such as {odd[0]}"
        )
    return to_file(key_map, parameters) | _buffers(model.config)


def _buffers(config: LatentDiffusionConfig) -> dict[str, Tensor]:
    """What the original classes keep as buffers, and readers of their files expect."""
    length = config.text_encoder.context_length
    if config.text_encoder.projection_dim is None:
        return {TEXT_ENCODER + "embeddings.position_ids": torch.arange(length)[None]}
    mask = torch.full((length, length), float("-inf")).triu(1)
    return {OPEN_CLIP + "attn_mask": mask}


def save(model: Model, path: str | Path, *, dtype: Dtype | None = None) -> None:
    """Write a model as one CompVis-layout file: `.safetensors`, or a PyTorch zip for `.ckpt` and `.pt`.

    `dtype` casts the weights; None keeps each as it is. The file is written under a temporary name and
    moved into place, so a crash leaves no half file and an older file whole. Raises CheckpointError for
    another ending, a folder that is not there, or a model whose parameters are not its configuration's.
    """
    path = Path(path)
    tensors = {
        key: (value.to(dtype) if dtype and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in file_tensors(model).items()
    }
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(model.config.to_dict())}
    writers: dict[str, Callable[[Path], None]] = {
        ".safetensors": lambda target: _write_safetensors(tensors, metadata, target),
        ".ckpt": lambda target: torch.save({"state_dict": tensors, **metadata}, target),
        ".pt": lambda target: torch.save({"state_dict": tensors, **metadata}, target),
    }
    if path.suffix not in writers:
        raise CheckpointError(f"{path}: expected an ending of {', '.join(writers)}, got {path.suffix!r}")
    write_then_move(path, writers[path.suffix])


def _write_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], target: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), target, metadata)


def write_then_move(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    temporary = Path(name)
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
