"""Reads the files of LoRA, LoHa and LoKr adapters: from a file to the change of each layer.

No tensor is ignored silently: tensors without a layer, missing counterparts, wrong shapes and non-finite
values are errors that name the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.adapters.lora_delta import Delta, Full, WidthError, kind_of
from ldm_core.adapters.lora_names import PEFT, SECOND_TEXT_ENCODER, layer_names, split_key
from ldm_core.adapters.peft_settings import PeftSettings, parse_settings
from ldm_core.checkpoint.folder import adapter_file, read_json
from ldm_core.checkpoint.key_map import report
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.values import all_finite
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.families import other_family
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import printable

PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"
FIRST = "unet.conv_in"
WIDTHS = {768: " (as SD1)", 1024: " (as SD2)", 2048: " (as SDXL)"}

# Name suffixes of the layers whose number of inputs is a characteristic width of the network.
_WIDTH_LAYERS = {
    "unet": ("a U-Net with a context", (".attn2.to_k", ".attn2.to_v")),
    "text_encoder": ("a text encoder", (".to_q", ".to_k", ".to_v", ".to_out", ".fc1")),
}


@dataclass
class _Layer:
    """The tensors of one layer in a file, and their keys there, by role."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    name: str = ""  # of the layer in the file

    @property
    def first_key(self) -> str:
        """The key that names the layer in errors; an alpha's only if there is no other."""
        keys = [key for role, key in self.keys.items() if role != "alpha"]
        return (keys or list(self.keys.values()))[0]


def read_adapter(
    path: str | Path, config: LatentDiffusionConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Delta]:
    """The changes of an adapter by layer name, such as `unet.mid.attention.proj_in`.

    path: a file, or a folder written by PEFT or diffusers. shapes: of the weights and biases of the adaptable
    layers, by parameter name. Raises CheckpointError for a file that cannot be read, is not a supported
    adapter, or does not fit the model.
    """
    file = adapter_file(Path(path))
    checkpoint = read(file)
    source = file.name
    tensors = checkpoint.tensors | _scalars(checkpoint)
    _refuse_other_files(source, tensors)
    settings = _settings(file, checkpoint)

    layers, unknown, twice = _by_layer(tensors, layer_names(config), shapes)
    deltas: dict[str, Delta] = {}
    errors: dict[str, ValueError] = {}
    for name, layer in layers.items():
        own = settings.get(name.split(".")[0])
        try:
            deltas[name] = _delta(layer, name, shapes, own)
        except WidthError as error:
            if name == FIRST and error.made_for == config.unet.out_channels < error.inputs:
                deltas[name] = _widened(layer, shapes, error, own)
            else:
                errors[name] = error
        except ValueError as error:
            errors[name] = error
    _refuse_other_widths(source, layers, errors)
    misfits = [f"{layers[name].first_key}: {error}" for name, error in errors.items()]
    found = {
        "without a linear or convolutional layer in the model": unknown,
        "that duplicate another tensor of their layer": twice,
        "(or groups of them) that do not fit their layer": misfits,
        "with non-finite values": _not_finite(layers),
    }
    report(source, found)
    return deltas


def _scalars(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Alphas that a pickle stores as Python numbers."""
    return {
        key: torch.tensor(float(value), dtype=torch.float64)
        for key, value in checkpoint.metadata.items()
        if str(key).endswith(".alpha") and isinstance(value, int | float)
    }


def _refuse_other_files(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the file is not an adapter, or one of an unsupported kind."""
    roles = [(key, found[1]) for key in tensors if (found := split_key(key)) is not None]
    if not any(role != "alpha" for _, role in roles):
        names = ", ".join(printable(repr(key)[:80]) for key in list(tensors)[:3])
        what = other_family(tensors) or f"not an adapter of a known kind (its keys include {names})"
        raise CheckpointError(f"{source} is {what}")
    for unsupported, keys in (
        (
            "an adapter for Stable Diffusion XL, which is not supported",
            [key for key in tensors if key.startswith(SECOND_TEXT_ENCODER)],
        ),
        (
            "a DoRA (arXiv:2402.09353), which is not supported: it also scales the model's own weights",
            [key for key, role in roles if role == "dora"],
        ),
    ):
        if keys:
            raise CheckpointError(
                f"{source} is {unsupported}; it has {len(keys)} keys such as {printable(keys[0][:80])}"
            )


def _settings(file: Path, checkpoint: Checkpoint) -> dict[str, PeftSettings]:
    """PEFT's settings of each network, if the file or its folder has them."""
    if any(key.startswith(PEFT) for key in checkpoint.tensors):
        beside = file.parent / PEFT_CONFIG
        if not beside.is_file():
            raise CheckpointError(
                f"{file}: expected {PEFT_CONFIG} in the same folder, where PEFT stores the adapter's alpha"
            )
        settings = parse_settings(read_json(beside), str(beside))
        return {"unet": settings, "text_encoder": settings}
    text = checkpoint.metadata.get(DIFFUSERS_METADATA)
    if not isinstance(text, str):
        return {}
    source = f"{file.name}: {DIFFUSERS_METADATA}"
    values = parse_json(text, source, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} must be a mapping, not a {type(values).__name__}")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        part, dot, name = key.partition(".")
        parts.setdefault(part if dot else "unet", {})[name or part] = value
    return {part: parse_settings(values, source) for part, values in parts.items()}


def _by_layer(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, _Layer], list[str], list[str]]:
    """(tensors by layer, keys without a layer, keys of duplicate tensors)."""
    layers: dict[str, _Layer] = {}
    unknown, twice = [], []
    for key, tensor in tensors.items():
        found = split_key(key)
        name = names.get(found[0]) if found is not None else None
        if found is None or name is None or f"{name}.weight" not in shapes:
            unknown.append(key)
            continue
        layer = layers.setdefault(name, _Layer(name=found[0]))
        if found[1] in layer.tensors:
            twice.append(f"{key}, like {layer.keys[found[1]]}")
        layer.tensors[found[1]], layer.keys[found[1]] = tensor, key
    return layers, unknown, twice


def _delta(
    layer: _Layer, name: str, shapes: Mapping[str, tuple[int, ...]], settings: PeftSettings | None
) -> Delta:
    """The change of one layer. Raises ValueError if its tensors do not fit."""
    found = {role: x for role, x in layer.tensors.items() if role not in ("alpha", "diff_b", "lora_bias")}
    kind = kind_of(set(found))
    for role, tensor in layer.tensors.items():
        if not tensor.is_floating_point() and role != "alpha":
            raise ValueError(f"{role} has dtype {tensor.dtype}, expected floating point")
    shape = tuple(shapes[f"{name}.weight"])
    fitted, rank = kind.fit(found, shape)
    scale = 1.0
    if "alpha" in layer.tensors:
        scale = _alpha(layer.tensors["alpha"]) / rank if rank is not None else 1.0
    elif settings is not None:
        scale = settings.scale(layer.name, rank)
    bias = _bias(layer.tensors, scale, shapes.get(f"{name}.bias"))
    # Copied, since a memory-mapped file may be overwritten later, for example by a trainer.
    factors = {role: tensor.clone() for role, tensor in fitted.items()}
    return kind(factors, shape, rank, scale, bias)


def _widened(
    layer: _Layer, shapes: Mapping[str, tuple[int, ...]], error: WidthError, settings: PeftSettings | None
) -> Delta:
    """The change of the first convolution by an adapter of a model without concatenated inputs.

    An inpainting model's first convolution sees more than the latent, which the adapter does not change.
    """
    outputs, inputs, *kernel = shapes[f"{FIRST}.weight"]
    narrow = dict(shapes) | {f"{FIRST}.weight": (outputs, error.made_for, *kernel)}
    delta = _delta(layer, FIRST, narrow, settings)
    diff = torch.zeros(outputs, inputs, *kernel)
    diff[:, : error.made_for] = delta.weight()
    return Full({"diff": diff}, tuple(diff.shape), None, delta.scale, delta.bias)


def _alpha(alpha: Tensor) -> float:
    if alpha.numel() != 1 or alpha.is_complex():
        raise ValueError(f"alpha is {alpha.dtype} {tuple(alpha.shape)}, expected a real number")
    value = float(alpha.double())
    if not math.isfinite(value) or value == 0:
        raise ValueError(f"alpha is {value:g}, expected a finite non-zero number")
    return value


def _bias(tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...] | None) -> Tensor | None:
    """The change of the layer's bias, in float32."""
    biases = {"diff_b": 1.0, "lora_bias": scale}
    present = [role for role in biases if role in tensors]
    if not present:
        return None
    for role in present:
        if shape is None or tuple(tensors[role].shape) != tuple(shape):
            wanted = "but the layer has no bias" if shape is None else f"expected {tuple(shape)}"
            raise ValueError(f"{role} has shape {tuple(tensors[role].shape)}, {wanted}")
    return torch.stack([tensors[role].float() * biases[role] for role in present]).sum(dim=0)


def _not_finite(layers: Mapping[str, _Layer]) -> list[str]:
    return [
        layer.keys[role]
        for layer in layers.values()
        for role, tensor in layer.tensors.items()
        if not all_finite(tensor)
    ]


def _refuse_other_widths(source: str, layers: Iterable[str], errors: Mapping[str, ValueError]) -> None:
    """Raise one short CheckpointError for an adapter of a model family with another width."""
    for part, (what, ends) in _WIDTH_LAYERS.items():
        found = [errors.get(name) for name in layers if name.startswith(part) and name.endswith(ends)]
        wrong = [error for error in found if isinstance(error, WidthError)]
        if wrong and len(wrong) == len(found) and len({error.made_for for error in wrong}) == 1:
            theirs, ours = wrong[0].made_for, wrong[0].inputs
            raise CheckpointError(
                f"{source} was made for {what} of width {theirs}{WIDTHS.get(theirs, '')}; "
                f"this model's is {ours}{WIDTHS.get(ours, '')}"
            )
