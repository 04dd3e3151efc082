"""Applies LoRA, LoHa and LoKr adapters to a model, and removes them.

An adapted weight is W + s dW with dW of low rank: dW = B A in LoRA (Hu et al. 2021, arXiv:2106.09685); for
LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859) see `ldm_core.adapters.lora_delta`.
`ldm_core.adapters.lora_file` reads the files of kohya-ss, LyCORIS, diffusers and PEFT.

    adapter = apply_lora(model, "style.safetensors", scale=0.8)
    adapter.scale = 0.5         # takes effect at the next call
    adapter.fuse()              # merges into the weights: no cost per call
    adapter.remove()            # restores the model bit for bit

Unless fused, an adapter does not change the weights: forward hooks add s dW x to each layer's output. A model
can have any number of adapters, fused or not, and they can be removed in any order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.adapters.lora_delta import Delta
from ldm_core.adapters.lora_file import read_adapter
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import placed

PARTS = ("unet", "text_encoder")
_FUSION = "_fused_adapters"  # attribute of a layer that holds its `_Fusion`


def apply_lora(
    model: LatentDiffusion,
    path: str | os.PathLike[str],
    scale: float = 1.0,
    text_encoder_scale: float | None = None,
) -> LoraAdapter:
    """Apply an adapter to a model, in place, and return a handle to it.

    path: a file, or a folder written by PEFT or diffusers.
    scale: the strength; 0 disables the adapter, negative values invert it.
    text_encoder_scale: the strength in the text encoder, by default `scale`.
    Raises CheckpointError if the file cannot be read or does not fit the model, and ValueError for a
    non-finite scale; the model is then unchanged.
    """
    layers = adaptable_layers(model)
    shapes = {
        f"{name}.{kind}": tuple(parameter.shape)
        for name, layer in layers.items()
        for kind, parameter in layer.named_parameters(recurse=False)
    }
    with torch.inference_mode(False), torch.no_grad():
        deltas = read_adapter(Path(path), model.config, shapes)
    adapter = LoraAdapter(Path(path).name, scale, text_encoder_scale)
    adapter._attach({name: (layers[name], delta) for name, delta in deltas.items()})
    return adapter


def change_of(layer: Any, x: Tensor, weights: Sequence[Tensor], spatial: int = 0) -> Tensor:
    """dW x / s: apply a chain of weights to a layer's input; weights[spatial] has the layer's kernel."""
    for place, weight in enumerate(weights):
        if isinstance(layer, nn.Linear):
            x = F.linear(x, weight)
        elif place == spatial:
            padding = layer.padding
            if _padding_mode(layer) == "circular":
                rows, columns = padding
                x, padding = F.pad(x, (columns, columns, rows, rows), mode="circular"), 0
            x = F.conv2d(x, weight, None, layer.stride, padding, layer.dilation)
        else:
            x = F.conv2d(x, weight)
    return x


def _padding_mode(layer: Any) -> str:
    """A 3x3 convolution of this package pads in its function, which `seamless` replaces."""
    mode: str = getattr(getattr(layer, "convolution", layer), "padding_mode", "zeros")
    return mode


def adaptable_layers(model: LatentDiffusion) -> dict[str, Any]:
    """The linear and convolutional layers of a model, by names such as `unet.mid.attention.proj_in`."""
    return {
        f"{part}.{name}": layer
        for part in PARTS
        if part in model.modules
        for name, layer in model.modules[part].named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


class LoraAdapter:
    """A handle to an adapter of a model, returned by `apply_lora`.

    scale                the strength; can be set at any time
    text_encoder_scale   the strength in the text encoder; None for `scale`
    """

    def __init__(self, name: str, scale: float, text_encoder_scale: float | None) -> None:
        self.name = name
        self._changes: dict[str, _Change] = {}
        self._state = "live"
        self._scale = _checked(scale)
        self._text_encoder_scale = None if text_encoder_scale is None else _checked(text_encoder_scale)
        self._scales: dict[str, float] = {}  # by part; shared with the layers' hooks
        self._refresh()

    def _attach(self, layers: dict[str, tuple[Any, Delta]]) -> None:
        for name, (layer, delta) in layers.items():
            self._changes[name] = _Change(self._scales, name.split(".")[0], layer, delta)
        for change in self._changes.values():
            change.hook_on()

    @property
    def scale(self) -> float:
        """The factor of all changes, which may be set."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = _checked(value)
        self._refresh()

    @property
    def text_encoder_scale(self) -> float | None:
        """The text encoder's own factor, which may be set; None: `scale`."""
        return self._text_encoder_scale

    @text_encoder_scale.setter
    def text_encoder_scale(self, value: float | None) -> None:
        self._text_encoder_scale = None if value is None else _checked(value)
        self._refresh()

    @property
    def layers(self) -> dict[str, int | None]:
        """{parameter: rank of its change}; None for a change without a rank."""
        ranks: dict[str, int | None] = {}
        for name, change in self._changes.items():
            ranks[f"{name}.weight"] = change.delta.rank
            if change.delta.bias is not None:
                ranks[f"{name}.bias"] = None
        return ranks

    def fuse(self) -> None:
        """Merge the adapter into the weights; computed in float32 and rounded once to the weights' dtype.

        The original weights are kept, which takes the memory of the adapted layers. Other changes of these
        weights are lost when a fused adapter is removed or its scale is set.
        Raises ValueError if the adapter has been removed.
        """
        if self._state == "removed":
            raise ValueError(f"{self.name} was removed from its model: call apply_lora again")
        if self._state == "live":
            self._state = "fused"
            for change in self._changes.values():
                change.hook_off()
                change.fuse()

    def unfuse(self) -> None:
        """Undo `fuse`: restore the original weights and apply the adapter by hooks."""
        if self._state == "fused":
            self._state = "live"
            for change in self._changes.values():
                change.unfuse()
                change.hook_on()

    def remove(self) -> None:
        """Remove the adapter from the model. Can be called more than once."""
        self.unfuse()
        self._state = "removed"
        for change in self._changes.values():
            change.hook_off()

    def _refresh(self) -> None:
        own = self._text_encoder_scale
        self._scales |= {"unet": self._scale, "text_encoder": self._scale if own is None else own}
        if self._state == "fused":
            for change in self._changes.values():
                change.fuse_again()

    def __repr__(self) -> str:
        kinds = "/".join(dict.fromkeys(change.delta.kind for change in self._changes.values()))
        ranks = [change.delta.rank for change in self._changes.values() if change.delta.rank is not None]
        span = f" of rank {'..'.join(map(str, dict.fromkeys((min(ranks), max(ranks)))))}" if ranks else ""
        counts = [(sum(c.part == part for c in self._changes.values()), part) for part in PARTS]
        where = " and ".join(f"{count} layers of the {part}" for count, part in counts if count)
        text = "" if self.text_encoder_scale is None else f", text_encoder_scale={self.text_encoder_scale:g}"
        return f"<{self.name}: {kinds}{span} on {where}, {self._state}, scale={self.scale:g}{text}>"


class _Change:
    """The change of one layer, applied as a forward hook or fused."""

    def __init__(self, scales: dict[str, float], part: str, layer: Any, delta: Delta) -> None:
        self.scales, self.part, self.layer, self.delta = scales, part, layer, delta
        self._handle: Any = None
        self._cast_for: tuple[torch.device, torch.dtype] | None = None
        self._cast: tuple[Tensor, ...] = ()

    @property
    def scale(self) -> float:
        """The adapter's scale in this layer's network, without the scale of the delta."""
        return self.scales[self.part]

    def hook_on(self) -> None:
        # Before other hooks: an IP-Adapter takes the layer's output as its queries.
        self._handle = self.layer.register_forward_hook(self, prepend=True)

    def hook_off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._cast_for, self._cast = None, None, ()

    def __call__(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """The layer's output with the change; None, which keeps the output, if the scale is 0."""
        if self.scale == 0:
            return None
        (x,) = args
        change = change_of(layer, x, self._chain(x), self.delta.spatial)
        output = torch.add(output, change, alpha=self.scale * self.delta.scale)
        if self.delta.bias is not None:
            bias = self.delta.bias.to(output)
            output = output + self.scale * (bias if isinstance(layer, nn.Linear) else bias[:, None, None])
        return output

    def _chain(self, x: Tensor) -> tuple[Tensor, ...]:
        """The delta's chain on the device and in the dtype of x, cached."""
        if self._cast_for != (x.device, x.dtype):
            with torch.inference_mode(False), torch.no_grad():  # usable in later calls with gradients
                self._cast = tuple(placed(w, x.device, x.dtype) for w in self.delta.chain(x.device))
            self._cast_for = (x.device, x.dtype)
        return self._cast

    def fuse(self) -> None:
        vars(self.layer).setdefault(_FUSION, _Fusion(self.layer)).changes.append(self)
        self.fuse_again()

    def unfuse(self) -> None:
        fusion: _Fusion | None = vars(self.layer).get(_FUSION)
        if fusion is None or self not in fusion.changes:
            return  # `fuse` failed before this layer, for example for lack of memory
        fusion.changes.remove(self)
        fusion.write(self.layer)
        if not fusion.changes:
            del vars(self.layer)[_FUSION]

    def fuse_again(self) -> None:
        """Recompute the fused weights after a change of scale."""
        vars(self.layer)[_FUSION].write(self.layer)

    def added_to(self, parameter: str, device: torch.device) -> Tensor | None:
        """The change of the layer's "weight" or "bias", in float32; None if there is none."""
        if self.scale == 0:
            return None
        if parameter == "weight":
            return self.delta.weight(device) * (self.scale * self.delta.scale)
        return None if self.delta.bias is None else self.delta.bias.to(device) * self.scale


class _Fusion:
    """The changes fused into a layer, and the original values of its parameters."""

    def __init__(self, layer: nn.Module) -> None:
        self.originals = {name: p.data for name, p in layer.named_parameters(recurse=False)}
        self.changes: list[_Change] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(self, layer: nn.Module) -> None:
        """Set the layer's parameters to the originals plus all changes.

        They are always computed from the originals, so that rounding errors do not accumulate.
        """
        for name, original in self.originals.items():
            parameter = layer.get_parameter(name)
            value = original.to(parameter.device)
            added = [change.added_to(name, value.device) for change in self.changes]
            for delta in added:
                if delta is not None:
                    value = value.to(torch.promote_types(value.dtype, torch.float32)) + delta
            parameter.data = value.to(parameter.dtype)


def _checked(scale: float) -> float:
    if not math.isfinite(scale):
        raise ValueError(f"an adapter's scale must be finite, not {scale}")
    return float(scale)
