"""Adapters of text-to-image models on models whose first convolution sees more than the latent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.adapter_files import write
from support.configs import SMALL_SD1
from support.random_models import random_model

from ldm_core import build
from ldm_core.adapters.lora import apply_lora
from ldm_core.errors import CheckpointError


@pytest.mark.parametrize("form", ["lora", "diff"])
def test_an_adapter_of_the_first_convolution_on_an_inpainting_model(form: str, tmp_path: Path) -> None:
    """It changes what is computed from the latent, and not from the mask and the masked picture."""
    model = random_model(replace(SMALL_SD1, unet=replace(SMALL_SD1.unet, in_channels=9)))
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 4, 3, 3, generator=generator), torch.randn(32, 4, 1, 1, generator=generator)
    change = (up.flatten(1) @ down.flatten(1)).reshape(32, 4, 3, 3)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    if form == "diff":
        tensors = {"diff": change / 2}
    path = write(tmp_path / "a.safetensors", {f"lora_unet_conv_in.{k}": v for k, v in tensors.items()})
    before = model.unet.conv_in.weight.clone()
    adapter = apply_lora(model, path)
    adapter.fuse()
    added = model.unet.conv_in.weight - before
    torch.testing.assert_close(added[:, :4], change / 2, atol=1e-5, rtol=1e-5)
    assert (added[:, 4:] == 0).all()
    wide = write(tmp_path / "b.safetensors", {"lora_unet_conv_in.diff": torch.zeros(32, 9, 3, 3)})
    with pytest.raises(CheckpointError, match="expected 4 inputs, got 9"):
        apply_lora(build(SMALL_SD1), wide)
