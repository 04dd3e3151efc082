"""Low-rank adaptation (LoRA): trains B A beside a frozen weight W (arXiv:2106.09685).

    h = W x + (alpha / r) B A x        A (r, I), B (O, r)

Hu et al. 2021, section 4.1, equation 3. A is initialised at random and B with zeros, so that training starts
from the unchanged model. For a convolution, A has the layer's kernel and stride, and B is a 1x1 convolution,
as in kohya-ss, LyCORIS and PEFT, whose initialisation of A is used, too. CompVis has no counterpart;
`ldm_core.adapters.lora` applies the saved files.

    lora = TrainableLora(model, rank=8)
    trainer = Trainer(DiffusionObjective(model, adapter=lora), samples, "runs/style", settings)
    trainer.run()
    with trainer.averaged():
        lora.save("style.safetensors")                         # names="kohya", "diffusers" or "peft"
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.adapters.lora import adaptable_layers, change_of
from ldm_core.adapters.lora_writer import Names, write_lora
from ldm_core.config import TextEncoderConfig
from ldm_core.model import LatentDiffusion

# Suffixes of layer names. Defaults of other trainers: diffusers ATTENTION; kohya-ss the first three.
ATTENTION = ("to_q", "to_k", "to_v", "to_out")
FEED_FORWARD = ("ff.proj_in", "ff.proj_out", "fc1", "fc2")
PROJECTIONS = ("attention.proj_in", "attention.proj_out")  # around a spatial transformer
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "skip", "resample.conv", "conv_out")

_BEFORE = "_required_grad_before_lora"  # attribute of a network: requires_grad by parameter name


class TrainableLora(nn.Module):
    """A LoRA applied to a model, with A and B of each layer as parameters, in float32.

    rank: r, 1 or more. alpha: by default r, so that the scale alpha / r is 1.
    layers: suffixes of the names of the linear and convolutional layers to adapt, such as `ATTENTION`.
    parts: "unet", "text_encoder" or both. seed: of the initialisation of A.

    The LoRA is applied by forward hooks; the model's weights do not change and are saved without it. When the
    last TrainableLora of a model is removed, the `requires_grad` of its weights is restored. The model may
    have other adapters. A copy of this module is not applied to any model.
    Raises ValueError for invalid values, and if a network has no matching layer.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        rank: int = 4,
        alpha: float | None = None,
        *,
        layers: Sequence[str] = ATTENTION,
        parts: Sequence[str] = ("unet",),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be an integer of 1 or more, not {rank!r}")
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be a finite positive number, not {alpha}")
        self._config = model.config
        generator = torch.Generator().manual_seed(seed)
        chosen = _chosen(model, layers, parts)
        scale = self.alpha / rank
        changes = {name: _LowRank(layer, rank, scale, generator) for name, layer in chosen.items()}
        # nn.ModuleDict does not allow dots in names.
        self.changes = nn.ModuleDict({name.replace(".", "/"): change for name, change in changes.items()})
        self._networks = tuple(model.modules.values())  # a tuple, so that they are not submodules
        if not _has_change(self._networks):
            for network in self._networks:
                vars(network)[_BEFORE] = {name: p.requires_grad for name, p in network.named_parameters()}
        self._hooks = [chosen[name].register_forward_hook(change) for name, change in changes.items()]

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of each layer, by layer names such as `unet.mid.attention.proj_in`."""
        return {
            name.replace("/", "."): (change.down, change.up)  # type: ignore[misc]
            for name, change in self.changes.items()
        }

    def save(
        self, path: str | os.PathLike[str], *, names: Names = "kohya", dtype: torch.dtype = torch.float32
    ) -> None:
        """Save the LoRA in the format of kohya-ss, diffusers or PEFT.

        See `ldm_core.adapters.lora_writer.write_lora` for the arguments and errors.
        """
        write_lora(Path(path), self.factors, self.alpha, self._config, names=names, dtype=dtype)

    def remove(self) -> None:
        """Remove the LoRA from the model. Can be called more than once."""
        for hook in self._hooks:
            hook.remove()
        if not _has_change(self._networks):
            for network in self._networks:
                before = vars(network).pop(_BEFORE, {})
                for name, parameter in network.named_parameters():
                    parameter.requires_grad_(before.get(name, parameter.requires_grad))
        self._networks = ()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_networks": (), "_hooks": []}


class _LowRank(nn.Module):
    """A and B of one layer, as a forward hook."""

    def __init__(self, layer: Any, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs, *kernel = layer.weight.shape
        bound = 1 / math.sqrt(inputs * math.prod(kernel))  # kaiming_uniform_ with a = sqrt(5)
        down = (torch.rand(rank, inputs, *kernel, generator=generator) * 2 - 1) * bound
        self.down = nn.Parameter(down.to(layer.weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in kernel), device=layer.weight.device))
        self.scale = scale

    def forward(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = args
        change = change_of(layer, x, (self.down.to(x.dtype), self.up.to(x.dtype)))
        return torch.add(output, change, alpha=self.scale)


def _has_change(networks: Sequence[nn.Module]) -> bool:
    layers = (layer for network in networks for layer in network.modules())
    return any(isinstance(hook, _LowRank) for layer in layers for hook in layer._forward_hooks.values())


def _chosen(model: LatentDiffusion, ends: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    if not parts or not set(parts) <= {"unet", "text_encoder"}:
        raise ValueError(f"parts must be 'unet', 'text_encoder' or both, not {parts!r}")
    suffixes = tuple(f".{end}" for end in ([ends] if isinstance(ends, str) else ends))
    unused = _unused_blocks(model)
    chosen: dict[str, Any] = {}
    for part in dict.fromkeys(parts):
        mine = {
            name: layer
            for name, layer in adaptable_layers(model).items()
            if name.startswith(f"{part}.") and name.endswith(suffixes) and not name.startswith(unused)
        }
        if not mine:
            raise ValueError(f"{part} has no linear or convolutional layer whose name ends in {list(ends)}")
        chosen |= mine
    return chosen


def _unused_blocks(model: LatentDiffusion) -> tuple[str, ...]:
    """Name prefixes of the text encoder's last blocks, which clip_skip and diffusers' files leave out."""
    text = model.config.text_encoder
    if not isinstance(text, TextEncoderConfig):
        return ()
    return tuple(f"text_encoder.blocks.{i}." for i in range(text.layers - text.clip_skip, text.layers))
