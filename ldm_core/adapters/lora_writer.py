"""Writes a LoRA in the formats of kohya-ss, diffusers and PEFT.

    kohya       a file: lora_unet_….lora_down.weight, ….lora_up.weight, ….alpha
    diffusers   a file: unet.….lora_A.weight, ….lora_B.weight, with rank and alpha in the metadata
    peft        a folder per network: base_model.model.….lora_A.weight and an adapter_config.json

Names and shapes come from the same tables as in `lora_file`. If the original model has a 1x1 convolution for
a linear layer, the factors are written as convolutions, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ldm_core.adapters.lora_file import DIFFUSERS_METADATA, PEFT_CONFIG
from ldm_core.adapters.lora_names import PEFT, kohya_name, module_names
from ldm_core.checkpoint.folder import ADAPTER_FILES
from ldm_core.checkpoint.writer import (
    Pending,
    require_whole,
    write_bytes,
    write_safetensors,
    write_then_move,
)
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError

Names = Literal["kohya", "diffusers", "peft"]
Factors = Mapping[str, tuple[Tensor, Tensor]]  # by layer: A (r, I, *k) and B (O, r), or (O, r, 1, 1)


def write_lora(
    path: Path,
    factors: Factors,
    alpha: float,
    config: LatentDiffusionConfig,
    *,
    names: Names = "kohya",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a LoRA whose layers have the same rank and alpha.

    path: a .safetensors file; for "peft", a folder with subfolders `unet` and `text_encoder`.
    factors: (A, B) by layer name, such as `unet.mid.attention.proj_in`.
    names: "kohya", "diffusers" or "peft". dtype: of the saved tensors.
    Raises ValueError for other names, another file extension or no layers, and CheckpointError if a file
    cannot be written; existing files are then unchanged.
    """
    if names not in get_args(Names):
        raise ValueError(f"names must be one of {', '.join(get_args(Names))}, not {names!r}")
    if (path.suffix == ".safetensors") == (names == "peft"):
        wanted = "the name of a folder" if names == "peft" else "a file name that ends in .safetensors"
        raise ValueError(f"{path}: for names={names!r}, expected {wanted}")
    modules = _in_file_shapes(factors, config, dtype)
    if not modules:
        raise ValueError("expected the factors of at least one layer, got none")
    rank = next(iter(factors.values()))[0].shape[0]
    if names == "kohya":
        _write(path, _kohya(modules, alpha), _kohya_metadata(rank, alpha))
        return
    settings = {part: _settings(list(layers), rank, alpha) for part, layers in modules.items()}
    if names == "diffusers":
        metadata = {f"{part}.{key}": value for part, s in settings.items() for key, value in s.items()}
        _write(path, _diffusers(modules), {"format": "pt", DIFFUSERS_METADATA: json.dumps(metadata)})
        return
    for part, layers in modules.items():
        _write_peft(path / part, layers, settings[part])


Modules = dict[str, dict[str, tuple[Tensor, Tensor]]]  # by part and name in diffusers or transformers


def _in_file_shapes(factors: Factors, config: LatentDiffusionConfig, dtype: torch.dtype) -> Modules:
    known = module_names(config)
    modules: Modules = {}
    for layer, (down, up) in factors.items():
        part = layer.split(".")[0]
        module, transform = known[layer]
        halves = [require_whole(x, f"the LoRA's {layer}").detach().to("cpu", dtype) for x in (down, up)]
        a, b = (transform.save((x,)) for x in halves)
        modules.setdefault(part, {})[module] = a, b
    return modules


def _kohya(modules: Modules, alpha: float) -> dict[str, Tensor]:
    tensors = {}
    for part, layers in modules.items():
        for module, (down, up) in layers.items():
            name = kohya_name(part, module)
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def _kohya_metadata(rank: int, alpha: float) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }


def _diffusers(modules: Modules) -> dict[str, Tensor]:
    # All versions of diffusers accept `text_model.`; some require it.
    prefixes = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}
    return {k: x for part, layers in modules.items() for k, x in _peft_names(prefixes[part], layers).items()}


def _peft_names(prefix: str, layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{prefix}{module}.lora_{half}.weight": x
        for module, both in layers.items()
        for half, x in zip("AB", both)
    }


def _settings(modules: list[str], rank: int, alpha: float) -> dict[str, Any]:
    """The settings of PEFT's `LoraConfig` for the same layers."""
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _write_peft(folder: Path, layers: Mapping[str, tuple[Tensor, Tensor]], settings: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {error.strerror}") from error
    write_bytes(folder / PEFT_CONFIG, json.dumps(settings | {"inference_mode": True}, indent=2).encode())
    _write(folder / ADAPTER_FILES[0], _peft_names(PEFT, layers), {"format": "pt"})


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    pending = {
        name: Pending(x.dtype, tuple(x.shape), partial(torch.Tensor.contiguous, x))
        for name, x in tensors.items()
    }
    write_then_move(path, lambda target: write_safetensors(pending, metadata, target))
