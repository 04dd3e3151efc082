"""Load a control: a ControlNet, a T2I-Adapter, a style adapter or a CoAdapter fuser."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import report
from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.values import all_finite
from ldm_core.config import PRESETS
from ldm_core.control.config import ControlNetConfig
from ldm_core.control.controlnet import ControlNet, shared_weights
from ldm_core.control.shapes import blank as blank_config
from ldm_core.control.t2i_adapter import T2IAdapterConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.control_parts import CONTROLS, DIFFERENCE
from ldm_core.loading.evidence import described_part
from ldm_core.loading.families import unsupported_control
from ldm_core.loading.find import PartSource, find_parts, leftovers
from ldm_core.loading.parts import fitted
from ldm_core.loading.weights import blank_network
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import check_device, check_dtype, choose_dtype, fill
from ldm_core.unet.config import UNetConfig


def load_control(
    path: str | Path,
    *,
    model: LatentDiffusion | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    global_pool: bool | None = None,
    variant: str | None = None,
    mmap: bool = True,
) -> nn.Module:
    """Load a control's network, for `ldm_core.Control`.

    path: a file or a diffusers folder with a ControlNet, alone or with its model, whole or as differences to
        Stable Diffusion 1.5; a T2I-Adapter, a style adapter or a CoAdapter fuser.
    model: the model to control. It checks that the control fits, gives what files do not contain (the number
        of attention heads, the weights to which differences are added), and the device and dtype.
    device, dtype: instead of those of the model; without both, as in `load`.
    global_pool: average a ControlNet's residuals over all pixels, which "shuffle" needs. None: as a diffusers
        folder says; of other files, whose tensors do not say it, those with "shuffle" in their name.
    variant, mmap: as in `load`.

    Raises CheckpointError for a file that cannot be read, is no such control, or does not fit the model.
    """
    device = device if device is not None else "cpu" if model is None else model.device
    dtype = dtype if dtype is not None or model is None else model.dtype
    check_device(device)
    check_dtype(dtype)
    checkpoint = read(path, variant=variant, mmap=mmap)
    name = checkpoint.path.name
    refused = unsupported_control(checkpoint.tensors)
    if refused is not None:
        raise CheckpointError(f"{name} is {refused}")
    sources = find_parts(checkpoint)
    source = next((sources[part] for part in CONTROLS if part in sources), None)
    if source is None:
        keys = ", ".join(repr(key) for key in list(checkpoint.tensors)[:3])
        raise CheckpointError(f"{name} contains no ControlNet and no T2I-Adapter (keys such as {keys})")
    if not any(other.part.fills for other in sources.values()):
        report(name, {"not used by the control": leftovers(checkpoint, sources.values())[1]})
    config = _config(source, model)
    if global_pool is None and described_part(source) is None and "shuffle" in name.lower():
        global_pool = True
    if global_pool is not None and isinstance(config, ControlNetConfig):
        config = replace(config, global_pool=global_pool)
    network = blank_network(config)
    parameters, keys_of, problems = source.parameters(config, network)
    report(name, problems)
    bad = [keys_of[key] for key, value in parameters.items() if not all_finite(value)]
    report(name, {"with values that are not finite": bad})
    marks = (DIFFERENCE, source.prefix + DIFFERENCE)
    if isinstance(network, ControlNet) and any(mark in checkpoint.tensors for mark in marks):
        parameters = _whole(name, network, parameters, model)
    fill(network, parameters, device, choose_dtype(dtype, device, parameters.values()))
    return network


def _config(source: PartSource, model: LatentDiffusion | None) -> Any:
    """The configuration of a control. Raises CheckpointError if it does not fit the model."""
    proven, described = source.prove(), described_part(source)
    if described is not None and fitted(described, proven) is None:
        raise CheckpointError(f"{source.name}: its settings describe another network than its tensors")
    unet = None if model is None else model.config.unet
    if unet is not None:
        _require_fit(source, proven, unet)
    if described is not None:
        return described
    if not isinstance(proven, ControlNetConfig):
        return proven
    known = [unet] if unet is not None else [config.unet for config in PRESETS.values()]
    for one in known:
        ours = _for_unet(proven, one)
        if blank_config(ours) == proven:
            return ours
    raise CheckpointError(
        f"{source.name}: the ControlNet's tensors do not contain its number of heads, and it fits no known "
        "model: pass model="
    )


def _for_unet(proven: ControlNetConfig, unet: UNetConfig) -> ControlNetConfig:
    """The proven ControlNet with all that is not proven taken from a U-Net."""
    own = ("in_channels", "out_channels", "hint_channels", "hint_widths", "gated_self_attention")
    return ControlNetConfig(**{**asdict(unet), **{name: getattr(proven, name) for name in own}})


def _require_fit(source: PartSource, proven: Any, unet: UNetConfig) -> None:
    """Raise CheckpointError if a control was made for another U-Net than this."""
    widths = tuple(unet.model_channels * mult for mult in unet.channel_mult)
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(proven, ControlNetConfig):
        ours = blank_config(_for_unet(proven, unet))
        wrong = [name for name, value in asdict(ours).items() if value != getattr(proven, name)]
        wrong.sort(key=lambda name: name != "context_dim")
        pairs = [(name, getattr(proven, name), getattr(ours, name)) for name in wrong]
    elif isinstance(proven, T2IAdapterConfig) or hasattr(proven, "channels"):
        pairs = [("channels", tuple(proven.channels), widths)]
        if getattr(proven, "kind", "full") == "light":
            pairs = [("channels", tuple(proven.channels), tuple(4 * (width // 4) for width in widths))]
    else:
        pairs = [("context_dim", proven.context_dim, unet.context_dim)]
    for name, found, wanted in pairs:
        if found != wanted:
            raise CheckpointError(
                f"{source.name} is {source.part.article} for another model: its {name} is {found}, the "
                f"model's {wanted}"
            )


def _whole(
    name: str, network: ControlNet, parameters: dict[str, Tensor], model: LatentDiffusion | None
) -> dict[str, Tensor]:
    """The parameters of a file of differences: with the model's weights added where it has them."""
    if model is None or not isinstance(model.unet, nn.Module):
        raise CheckpointError(
            f"{name} contains differences to Stable Diffusion 1.5: pass model=, to which they are added"
        )
    base = shared_weights(network, model.unet)
    return {
        key: value if key not in base else value.float() + base[key].to(value.device).float()
        for key, value in parameters.items()
    }
