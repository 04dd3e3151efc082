"""Reading adapters: from a file of LoRA, LoHa or LoKr to the change of each layer of a model.

Nothing in a file is left out in silence. What fits no layer, lacks its other half, has the wrong shape or
values that are not finite is an error that names the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.adapters.lora_delta import Delta, WidthError, kind_of
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
WIDTHS = {768: " (as SD1)", 1024: " (as SD2)", 2048: " (as SDXL)"}

# Layers whose number of inputs is one for the whole part, by the end of their names: what that number is.
_WIDTH_LAYERS = {
    "unet": ("a U-Net with a context", (".attn2.to_k", ".attn2.to_v")),
    "text_encoder": ("a text encoder", (".to_q", ".to_k", ".to_v", ".to_out", ".fc1")),
}


@dataclass
class _Layer:
    """What a file holds for one layer: its tensors, and the keys that they have in the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    name: str = ""  # in the file

    @property
    def first_key(self) -> str:
        """The key that stands for the layer in an error: not its alpha's, if there is another."""
        keys = [key for role, key in self.keys.items() if role != "alpha"]
        return (keys or list(self.keys.values()))[0]


def read_adapter(
    path: str | Path, config: LatentDiffusionConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Delta]:
    """The change of each layer that an adapter has, by the layer's name, as `unet.mid.attention.proj_in`.

    path: a file, or a folder that PEFT or diffusers has written. shapes: of the weights and biases of the
    layers that can be changed, by parameter. Raises CheckpointError for what cannot be read, is no adapter,
    is of a kind that is not supported, or does not fit the model.
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
        try:
            deltas[name] = _delta(layer, name, shapes, settings.get(name.split(".")[0]))
        except ValueError as error:
            errors[name] = error
    _refuse_other_widths(source, layers, errors)
    misfits = [f"{layers[name].first_key}: {error}" for name, error in errors.items()]
    found = {
        "that no linear or convolutional layer of the model takes": unknown,
        "of a layer that has another one of the same kind": twice,
        "(or groups of them) that make no change of their layer": misfits,
        "with values that are not finite": _not_finite(layers),
    }
    report(source, found)
    return deltas


def _scalars(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Alphas that a pickle holds as plain numbers."""
    return {
        key: torch.tensor(float(value), dtype=torch.float64)
        for key, value in checkpoint.metadata.items()
        if str(key).endswith(".alpha") and isinstance(value, int | float)
    }


def _refuse_other_files(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for what is no adapter, or is one of a kind that is known and not supported."""
    roles = [(key, found[1]) for key in tensors if (found := split_key(key)) is not None]
    if not any(role != "alpha" for _, role in roles):
        names = ", ".join(printable(repr(key)[:80]) for key in list(tensors)[:3])
        what = other_family(tensors) or f"no adapter of a kind known here (its keys are such as {names})"
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
    """PEFT's settings of each part, where the file or its folder has them."""
    if any(key.startswith(PEFT) for key in checkpoint.tensors):
        beside = file.parent / PEFT_CONFIG
        if not beside.is_file():
            raise CheckpointError(
                f"{file}: PEFT keeps an adapter's alpha in {PEFT_CONFIG}, which is not beside this file"
            )
        settings = parse_settings(read_json(beside), str(beside))
        return {"unet": settings, "text_encoder": settings}
    text = checkpoint.metadata.get(DIFFUSERS_METADATA)
    if not isinstance(text, str):
        return {}
    source = f"{file.name}: {DIFFUSERS_METADATA}"
    values = parse_json(text, source, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} is no mapping but a {type(values).__name__}")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        part, dot, name = key.partition(".")
        parts.setdefault(part if dot else "unet", {})[name or part] = value
    return {part: parse_settings(values, source) for part, values in parts.items()}


def _by_layer(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, _Layer], list[str], list[str]]:
    """(what the file holds for each layer, keys of no layer, keys of tensors that it has twice)."""
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
            twice.append(f"{key}, as {layer.keys[found[1]]}")
        layer.tensors[found[1]], layer.keys[found[1]] = tensor, key
    return layers, unknown, twice


def _delta(
    layer: _Layer, name: str, shapes: Mapping[str, tuple[int, ...]], settings: PeftSettings | None
) -> Delta:
    """One layer's change. Raises ValueError in words where its tensors do not make one."""
    found = {role: x for role, x in layer.tensors.items() if role not in ("alpha", "diff_b", "lora_bias")}
    kind = kind_of(set(found))
    for role, tensor in layer.tensors.items():
        if not tensor.is_floating_point() and role != "alpha":
            raise ValueError(f"{role} is of the type {tensor.dtype}")
    shape = tuple(shapes[f"{name}.weight"])
    fitted, rank = kind.fit(found, shape)
    scale = 1.0
    if "alpha" in layer.tensors:
        scale = _alpha(layer.tensors["alpha"]) / rank if rank is not None else 1.0
    elif settings is not None:
        scale = settings.scale(layer.name, rank)
    bias = _bias(layer.tensors, scale, shapes.get(f"{name}.bias"))
    # These outlive the file: a trainer may write it anew, and a mapped file would then change under way.
    factors = {role: tensor.clone() for role, tensor in fitted.items()}
    return kind(factors, shape, rank, scale, bias)


def _alpha(alpha: Tensor) -> float:
    if alpha.numel() != 1 or alpha.is_complex():
        raise ValueError(f"alpha is {alpha.dtype} {tuple(alpha.shape)}, and no number")
    value = float(alpha.double())
    if not math.isfinite(value) or value == 0:
        raise ValueError(f"alpha is {value:g}")
    return value


def _bias(tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...] | None) -> Tensor | None:
    """What is added to the layer's bias, in float32."""
    biases = {"diff_b": 1.0, "lora_bias": scale}
    present = [role for role in biases if role in tensors]
    if not present:
        return None
    for role in present:
        if shape is None or tuple(tensors[role].shape) != tuple(shape):
            wanted = "and the layer has no bias" if shape is None else f"expected {tuple(shape)}"
            raise ValueError(f"{role} is {tuple(tensors[role].shape)}, {wanted}")
    return torch.stack([tensors[role].float() * biases[role] for role in present]).sum(dim=0)


def _not_finite(layers: Mapping[str, _Layer]) -> list[str]:
    return [
        layer.keys[role]
        for layer in layers.values()
        for role, tensor in layer.tensors.items()
        if not all_finite(tensor)
    ]


def _refuse_other_widths(source: str, layers: Iterable[str], errors: Mapping[str, ValueError]) -> None:
    """An adapter of another family of models fits nowhere: its width says why in one line."""
    for part, (what, ends) in _WIDTH_LAYERS.items():
        found = [errors.get(name) for name in layers if name.startswith(part) and name.endswith(ends)]
        wrong = [error for error in found if isinstance(error, WidthError)]
        if wrong and len(wrong) == len(found) and len({error.made_for for error in wrong}) == 1:
            theirs, ours = wrong[0].made_for, wrong[0].inputs
            raise CheckpointError(
                f"{source} was made for {what} of width {theirs}{WIDTHS.get(theirs, '')}; "
                f"this model's is {ours}{WIDTHS.get(ours, '')}"
            )
