"""LoRA files by ldm_core's own layer names, for some layers of a model's U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ldm_core.adapters.lora import adaptable_layers
from ldm_core.adapters.lora_names import layer_names
from ldm_core.model import LatentDiffusion


def write_unet_lora(model: LatentDiffusion, wanted: Callable[[str, nn.Module], bool], path: Path) -> Path:
    """A random LoRA of rank 4, in kohya's layout, for the U-Net layers wanted by name and module."""
    names = {name: key for key, name in layer_names(model.config).items() if key.startswith("lora_unet_")}
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, layer in adaptable_layers(model).items():
        if name in names and wanted(name, layer):
            outputs, inputs, *kernel = layer.weight.shape
            down = torch.randn(4, inputs, *kernel, generator=generator) / layer.weight[0].numel() ** 0.5
            tensors[f"{names[name]}.lora_down.weight"] = down
            tensors[f"{names[name]}.lora_up.weight"] = torch.randn(
                outputs, 4, *[1] * len(kernel), generator=generator
            )
    save_file(tensors, path)
    return path
