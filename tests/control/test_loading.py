"""The files of controls: five layouts, what does not fit, and what `inspect` tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.configs import SMALL_SD1, SMALL_SD2
from support.controls import controlnet, draw, hint, shaken, tensors_of
from support.random_models import random_model
from torch import Tensor

import ldm_core
from ldm_core.control import adapter_names
from ldm_core.control.coadapter import CoAdapterFuser, FuserConfig, StyleAdapter, StyleAdapterConfig
from ldm_core.control.controlnet import ControlNet, shared_weights
from ldm_core.control.names import compvis_map, diffusers_map
from ldm_core.control.settings import controlnet_settings
from ldm_core.control.t2i_adapter import T2IAdapter, T2IAdapterConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

CHANNELS = (32, 64, 128, 128)


@pytest.fixture(scope="module")
def net(model: LatentDiffusion) -> ControlNet:
    return controlnet(model)


def written(tensors: dict[str, Tensor], folder: Path, name: str = "control.safetensors") -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
    return folder / name


def equal(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return (
        a.config == b.config
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def layouts(net: ControlNet, model: LatentDiffusion) -> dict[str, dict[str, Tensor]]:
    bare = tensors_of(net, compvis_map(net.config))
    alone = {f"control_model.{name}": value for name, value in bare.items()}
    base = tensors_of_base(net, model)
    difference = {k: v - base[k] if k in base else v for k, v in alone.items()}
    return {
        "full": {**file_tensors(model), **alone},
        "alone": alone,
        "bare": bare,
        "difference": {**difference, "difference": torch.zeros(0)},
        "marked within": {**difference, "control_model.difference": torch.zeros(0)},
    }


def tensors_of_base(net: ControlNet, model: LatentDiffusion) -> dict[str, Tensor]:
    """The model's weights by the names of their counterparts in a file of the control."""
    partners = {**dict.fromkeys(net.state_dict(), torch.zeros(())), **shared_weights(net, model.unet)}
    named = {k: e.parameters[0] for k, e in compvis_map(net.config).items()}
    unet = {
        f"control_model.{k.removeprefix('model.diffusion_model.')}": v for k, v in file_tensors(model).items()
    }
    return {f"control_model.{k}": unet[f"control_model.{k}"] for k, n in named.items() if partners[n].ndim}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("layout", ["full", "alone", "bare", "difference", "marked within"])
def test_every_layout_loads(layout: str, net: ControlNet, model: LatentDiffusion, tmp_path: Path) -> None:
    path = written(layouts(net, model)[layout], tmp_path)
    loaded = ldm_core.load_control(path, model=model)
    assert loaded.config == net.config
    exact = layout not in ("difference", "marked within")
    assert not exact or equal(loaded, net)
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, net.state_dict()[name], atol=1e-6), name
    report = ldm_core.inspect(path)
    if layout == "full":  # the model in the same file is a model
        assert ldm_core.load(path, config=model.config).config == model.config
    else:
        assert report.family.startswith("a ControlNet")
        assert report.load == f"ldm_core.load_control({str(path)!r}, model=model)"
        with pytest.raises(CheckpointError, match="is a ControlNet: load the model first, then load_control"):
            ldm_core.load(path)
    assert report.unknown == ()
    assert ldm_core.load_part(path, "controlnet", config=net.config).config == net.config


def test_a_file_of_differences_needs_its_model(
    net: ControlNet, model: LatentDiffusion, tmp_path: Path
) -> None:
    settings = {"ldm_core.parts": json.dumps({"controlnet": {**vars(net.config)}})}
    path = tmp_path / "difference.safetensors"
    save_file(layouts(net, model)["difference"], path, settings)
    with pytest.raises(CheckpointError, match=r"differences to Stable Diffusion 1\.5: pass model="):
        ldm_core.load_control(path)


def test_diffusers_folders(net: ControlNet, model: LatentDiffusion, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    settings = {**controlnet_settings(net.config), "global_pool_conditions": True}
    (folder / "config.json").write_text(json.dumps(settings))
    written(tensors_of(net, diffusers_map(net.config)), folder, "diffusion_pytorch_model.safetensors")
    loaded = ldm_core.load_control(folder)
    assert loaded.config.global_pool
    assert (loaded.config.num_heads, loaded.config.hint_widths) == (4, (16, 32, 96, 256))
    assert equal(ldm_core.load_control(folder, model=model, global_pool=False), net)
    assert ldm_core.inspect(folder).load == f"ldm_core.load_control({str(folder)!r}, model=model)"
    (folder / "config.json").write_text(json.dumps({**settings, "cross_attention_dim": 32}))
    with pytest.raises(CheckpointError, match="its settings describe another network than its tensors"):
        ldm_core.load_control(folder)


def test_a_file_that_is_called_shuffle_is_pooled(
    net: ControlNet, model: LatentDiffusion, tmp_path: Path
) -> None:
    """The YAML that is published beside control_v11e_sd15_shuffle.pth says so, and web UIs go by the name."""
    path = written(tensors_of(net, diffusers_map(net.config)), tmp_path, "Control_sd15_Shuffle.safetensors")
    assert ldm_core.load_control(path, model=model).config.global_pool
    assert not ldm_core.load_control(path, model=model, global_pool=False).config.global_pool
    other = path.rename(tmp_path / "control_sd15_canny.safetensors")
    assert not ldm_core.load_control(other, model=model).config.global_pool


ADAPTERS: dict[str, tuple[Any, Any, Any]] = {
    "full": (T2IAdapter, T2IAdapterConfig(channels=CHANNELS), adapter_names.original_map),
    "light": (T2IAdapter, T2IAdapterConfig(3, CHANNELS, 4, kind="light"), adapter_names.original_map),
    "diffusers": (T2IAdapter, T2IAdapterConfig(1, CHANNELS), adapter_names.diffusers_map),
    "style": (StyleAdapter, StyleAdapterConfig(64, 64), adapter_names.style_map),
    "fuser": (CoAdapterFuser, FuserConfig(CHANNELS, 64), adapter_names.fuser_map),
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("prefix", ["", "adapter."])
def test_adapters_load(kind: str, prefix: str, model: LatentDiffusion, tmp_path: Path) -> None:
    network, config, key_map = ADAPTERS[kind]
    if kind == "diffusers" and prefix:
        prefix = ""
    own = shaken(network(config))
    path = written(tensors_of(own, key_map(config), prefix), tmp_path)
    assert equal(ldm_core.load_control(path, model=model), own)
    report = ldm_core.inspect(path)
    assert report.family == "a T2I-Adapter"
    assert report.load == f"ldm_core.load_control({str(path)!r}, model=model)"


REFUSED = {
    "is a control-LoRA": {"lora_controlnet": torch.zeros(0), "zero_convs.0.0.weight": torch.ones(1)},
    "is a ControlNet for Stable Diffusion XL": {"control_model.label_emb.0.0.weight": torch.ones(1)},
    "is an IP-Adapter FaceID": {"ip_adapter.0.to_q_lora.down.weight": torch.ones(1)},
    "contains no ControlNet and no T2I-Adapter": {"a.weight": torch.ones(1)},
    "a T2I-Adapter for Stable Diffusion XL, which is not supported": {
        "conv_in.weight": torch.ones(320, 768, 3, 3), "body.0.block1.weight": torch.ones(320, 320, 3, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_other_families_are_named(words: str, model: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        ldm_core.load_control(written(REFUSED[words], tmp_path), model=model)
    assert "\n" not in str(error.value)


def test_controls_of_other_models_are_refused(net: ControlNet, tmp_path: Path) -> None:
    other = random_model(SMALL_SD2)
    wide = ControlNet.of(other.unet)
    path = written(tensors_of(wide, compvis_map(wide.config)), tmp_path)
    sd1 = random_model(SMALL_SD1)
    with pytest.raises(
        CheckpointError, match="a ControlNet for another model: its use_linear_in_transformer"
    ):
        ldm_core.load_control(path, model=sd1)
    bare = tensors_of(net, compvis_map(net.config))
    narrow = {k: v[:, :32] if "attn2.to_k" in k or "attn2.to_v" in k else v for k, v in bare.items()}
    with pytest.raises(CheckpointError, match="its context_dim is 32, the model's 64"):
        ldm_core.load_control(written(narrow, tmp_path), model=sd1)
    with pytest.raises(CheckpointError, match="fits no known model: pass model="):
        ldm_core.load_control(written(bare, tmp_path))
    with pytest.raises(CheckpointError, match=r"missing:\n    zero_convs\.5\.0\.bias"):
        ldm_core.load_control(
            written({k: v for k, v in bare.items() if k != "zero_convs.5.0.bias"}, tmp_path), model=sd1
        )
    with pytest.raises(CheckpointError, match=r"not finite:\n    zero_convs\.5\.0\.bias"):
        ldm_core.load_control(
            written({**bare, "zero_convs.5.0.bias": torch.full((64,), torch.nan)}, tmp_path), model=sd1
        )
    adapter = T2IAdapter(T2IAdapterConfig(channels=(32, 64)))
    path = written(tensors_of(adapter, adapter_names.original_map(adapter.config)), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"its channels is \(32, 64\), the model's \(32, 64, 128, 128\)"
    ):
        ldm_core.load_control(path, model=sd1)


def test_a_loaded_control_controls(net: ControlNet, model: LatentDiffusion, tmp_path: Path) -> None:
    """Saved by `save`, loaded in half precision, used with a model of single precision."""
    path = tmp_path / "net.safetensors"
    ldm_core.save(net, path)
    half = ldm_core.load_control(path, model=model, dtype=torch.bfloat16)
    control = ldm_core.Control(half, hint(1, 3, 128, 128))
    x, context = draw(1, 4, 16, 16), draw(1, 7, 64)
    found = control(x, 3, context)
    assert {one.dtype for one in found.skips} == {torch.float32}
    exact = ldm_core.Control(ldm_core.load_control(path), hint(1, 3, 128, 128))(x, 3, context)
    assert torch.allclose(found.middle, exact.middle, rtol=0.1, atol=0.1 * exact.middle.abs().max())
