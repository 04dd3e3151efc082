"""Every published model: recognised by its tensors alone, and each of them is read and written as it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from support.zoo import PUBLISHED, SCALE, UNET, image_encoder_shapes, trainer_tensors, write_blank
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import CheckpointError
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import PRESETS
from ldm_core.loading.compvis_yaml import from_yaml
from ldm_core.loading.find import ema_key
from ldm_core.loading.save import file_tensors
from ldm_core.loading.weights import open_weights

NAMES = pytest.mark.parametrize("name", PUBLISHED)
# One configuration of each list of tensors, since those of another training data set have the same ones.
DISTINCT = {
    preset: name
    for name, preset in PUBLISHED.items()
    if preset not in ("ffhq256", "lsun-beds256", "semantic-synthesis512", "sd2-v")
}
# By default one file of each structure: Stable Diffusion's lists are compared with its networks in
# tests/loading/test_key_maps.py, and all U-Nets in tests/unet.
FAST = ("lsun-churches256", "cin256-v2", "text2img256", "layout2img256", "inpainting-big", "x4-upscaler")
EACH_FILE = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=preset, marks=[] if preset in FAST else [pytest.mark.slow])
        for preset, name in DISTINCT.items()
    ],
)
CHURCHES = "latent-diffusion/ldm/lsun_churches256"
# The YAML file of SD2-v gives 512 pixels, and the model draws 768.
SIZES = {"sd2-v": 512}
# The published lists hold these besides parameters: buffers that follow from the configuration, which are
# written again, and the output layer of BERT, which no latent diffusion model evaluates.
BUFFERS = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.model.attn_mask",
}
UNUSED = {"cond_stage_model.transformer.to_logits.weight", "cond_stage_model.transformer.to_logits.bias"}


def blank_file(name: str, published: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], Path]:
    """(the tensors of the networks, a file of them and of what the trainer adds)."""
    shapes = published[name]["tensors"]
    conditioner = PRESETS[PUBLISHED[name]].conditioner
    own = image_encoder_shapes(conditioner) if isinstance(conditioner, UnclipConfig) else {}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in {**shapes, **own}.items()}
    path = folder / "model.safetensors"
    return tensors, write_blank({**tensors, **trainer_tensors(PUBLISHED[name], shapes)}, path)


def test_no_published_model_is_left_out(published: dict[str, Any]) -> None:
    with_unets = [n for n, entry in published.items() if any(k.startswith(UNET) for k in entry["tensors"])]
    assert sorted(with_unets) == sorted(PUBLISHED)
    assert set(PUBLISHED.values()) == set(PRESETS) - {"sd1-inpaint", "instruct-pix2pix", "gligen"}


@NAMES
def test_the_yaml_equals_the_preset(name: str, published: dict[str, Any]) -> None:
    preset = PUBLISHED[name]
    stored = PRESETS[preset].latent_scale if preset == "lsun-churches256" else None
    config = from_yaml({"model": published[name]["config"]}, stored_scale=stored)
    expected = PRESETS[preset].to_dict() | ({"image_size": SIZES[preset]} if preset in SIZES else {})
    assert config.to_dict() == expected


def test_the_distinct_lists_of_tensors_are_all_of_them(published: dict[str, Any]) -> None:
    lists = {json.dumps(published[name]["tensors"], sort_keys=True) for name in PUBLISHED}
    tested = {json.dumps(published[name]["tensors"], sort_keys=True) for name in DISTINCT.values()}
    assert tested == lists
    assert len(tested) == len(DISTINCT)


@pytest.mark.one_in(2)
@EACH_FILE
def test_tensors_alone_tell_the_model(name: str, published: dict[str, Any], tmp_path: Path) -> None:
    preset = PUBLISHED[name]
    _, path = blank_file(name, published, tmp_path)
    report = ldm_core.inspect(path)
    same = {"sd2-base": {"sd2-base", "sd2-v"}}.get(preset, {preset})
    assert same <= set(report.presets)
    assert all(PRESETS[one].unet == PRESETS[preset].unet for one in report.presets)
    assert report.load is not None
    assert report.load.startswith(f"ldm_core.load({str(path)!r})")
    assert report.sure == ("proved" if len(same) == 1 else "fits")
    assert (report.unknown, report.suspicious, report.missing) == ((), (), ())
    assert report.ema is PRESETS[preset].use_ema


@pytest.mark.one_in(2)
@EACH_FILE
def test_every_tensor_is_one_parameter_and_back(name: str, published: dict[str, Any], tmp_path: Path) -> None:
    preset = PUBLISHED[name]
    tensors, path = blank_file(name, published, tmp_path)
    opened = open_weights(path, prediction="eps" if preset == "sd2-base" else None)
    expected = PRESETS[preset].to_dict()
    if preset == "lsun-churches256":
        expected["latent_scale"] = pytest.approx(SCALE)
    assert opened.config.to_dict() == expected

    parameters = opened.flat()
    wanted = {
        f"{slot}.{n}": p.shape for slot, m in opened.networks.items() for n, p in m.state_dict().items()
    }
    assert {name: value.shape for name, value in parameters.items()} == wanted
    read = {f"{slot}.{n}": key for slot, named in opened.keys.items() for n, key in named.items()}
    stored = {key: key for key in tensors.keys() - BUFFERS - UNUSED}
    if opened.config.use_ema:
        stored |= {key: ema_key(key.removeprefix(UNET)) for key in stored if key.startswith(UNET)}
    assert read.keys() == wanted.keys()
    assert set(read.values()) == set(stored.values())
    assert len(set(stored.values())) == len(stored)
    assert sum(p.numel() for p in parameters.values()) == sum(tensors[key].numel() for key in stored)

    saved = file_tensors(SimpleNamespace(config=opened.config, **opened.networks))  # type: ignore[arg-type]
    shapes = {key: tuple(value.shape) for key, value in tensors.items() if key not in UNUSED}
    assert {key: tuple(value.shape) for key, value in saved.items()} == shapes


# tests/loading/test_published_lists.py loads those of Stable Diffusion.
@pytest.mark.slow  # reads up to 7 GB of zeros each
@pytest.mark.parametrize("name", [name for preset, name in DISTINCT.items() if not preset.startswith("sd")])
def test_the_file_loads_as_a_whole(name: str, published: dict[str, Any], tmp_path: Path) -> None:
    preset = PUBLISHED[name]
    _, path = blank_file(name, published, tmp_path)
    model = ldm_core.load(path, prediction=PRESETS[preset].prediction)
    assert model.config.unet == PRESETS[preset].unet
    (tmp_path / "with.yaml").write_text(yaml.safe_dump({"model": published[name]["config"]}))
    told = ldm_core.load(path, config=tmp_path / "with.yaml")
    assert told.config.unet == model.config.unet


@pytest.mark.parametrize("told", [False, True], ids=["tensors", "yaml"])
def test_a_measured_scale_is_never_guessed(told: bool, published: dict[str, Any], tmp_path: Path) -> None:
    shapes = published[CHURCHES]["tensors"]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    tensors |= trainer_tensors("lsun-churches256", shapes)
    del tensors["scale_factor"]
    path = write_blank(tensors, tmp_path / "model.safetensors")
    if told:
        text = yaml.safe_dump({"model": published[CHURCHES]["config"]})
        path.with_suffix(".yaml").write_text(text)
    with pytest.raises(CheckpointError, match="scale") as caught:
        ldm_core.load(path)
    assert "scale_factor" in str(caught.value)
