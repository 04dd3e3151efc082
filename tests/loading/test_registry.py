"""A part from outside, by one row: it is saved, inspected, converted and loaded like any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.configs import TINY
from support.reference import random_model
from torch import Tensor, nn

import ldm_core
from ldm_core.checkpoint import Checkpoint, CheckpointError
from ldm_core.checkpoint.folder import MODEL_INDEX
from ldm_core.checkpoint.key_map import KeyMap, expand
from ldm_core.loading.claims import Claim
from ldm_core.loading.decide import needed
from ldm_core.loading.find import find_parts
from ldm_core.loading.parts import Layout, Part, model_slots, part_configs, parts, register
from ldm_core.nn.placement import parameter_names


@dataclass(frozen=True)
class ToyConfig:
    widths: tuple[int, ...] = (4, 8)


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, sizes = config, config.widths
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def toy_map(config: ToyConfig) -> KeyMap:
    return expand({"layers.{i}": "toy.{i}.fc"}, parameter_names(Toy, config))


TOY = Part("toy", "toy network", ToyConfig, Toy, (Layout("toys", ("toy.",), toy_map),))


@pytest.fixture
def toy() -> Iterator[Part]:
    with register(TOY) as part:
        yield part


def test_a_part_of_ones_own(toy: Part, tmp_path: Path) -> None:
    network = Toy(ToyConfig((4, 8, 2)))
    ldm_core.save(network, tmp_path / "a.safetensors")
    report = ldm_core.inspect(tmp_path / "a.safetensors")
    assert (report.sure, report.missing, report.unknown) == ("proved", (), ())
    assert report.parts["toy"] == {"tensors": 4, "parameters": 58, "layout": "toys", "prefix": ""}
    assert report.load == f"ldm_core.load_part({str(tmp_path / 'a.safetensors')!r}, 'toy')"
    assert ldm_core.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt") == network.config
    for name in ("a.safetensors", "b.ckpt"):
        loaded = ldm_core.load_part(tmp_path / name, "toy")
        assert isinstance(loaded, Toy)
        assert loaded.config == network.config
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_a_file_without_settings_needs_a_configuration(toy: Part, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"toy.0.fc.weight": torch.ones(8, 4), "toy.0.fc.bias": torch.ones(8)}, path)
    with pytest.raises(CheckpointError, match="its toy matches no known model; pass config="):
        ldm_core.load_part(path, "toy")
    assert ldm_core.inspect(path).sure == "unknown"
    assert ldm_core.load_part(path, "toy", config=ToyConfig()).config == ToyConfig()
    with pytest.raises(CheckpointError, match=r"toy.0.fc.weight: expected \(9, 4\), got \(8, 4\)"):
        ldm_core.load_part(path, "toy", config=ToyConfig((4, 9)))
    with pytest.raises(CheckpointError, match=r"a.safetensors contains no .*; it contains a toy network"):
        ldm_core.load(path)


@pytest.mark.parametrize("stated", ["3", "{}", '{"toy": 3}', '{"toy": {"width": 3}}', "["])
def test_settings_that_are_damaged(stated: str, toy: Part, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"toy.0.fc.weight": torch.ones(8, 4), "toy.0.fc.bias": torch.ones(8)}
    save_file(tensors, path, {"ldm_core.parts": stated})
    with pytest.raises(CheckpointError, match=r"a.safetensors"):
        ldm_core.load_part(path, "toy")
    assert ldm_core.inspect(path).load is None


def test_the_first_part_that_fills_a_field_and_is_found_is_taken() -> None:
    tensors = {key: torch.empty(1, device="meta") for key in ("decoder.up.0.x", "quantize.embedding.weight")}
    layout = Layout("vq", ("decoder.up.", "quantize.embedding."), toy_map)
    with register(Part("vq", "VQ autoencoder", ToyConfig, Toy, (layout,), fills="autoencoder")):
        assert {k: s.part.name for k, s in find_parts(file_of(tensors)).items()} == {"autoencoder": "vq"}
        del tensors["quantize.embedding.weight"]
        assert find_parts(file_of(tensors))["autoencoder"].part.name == "autoencoder"


def file_of(tensors: dict[str, Tensor], **metadata: Any) -> Checkpoint:
    return Checkpoint(Path("x"), "safetensors", tensors, metadata)


def test_a_part_that_a_model_lacks_is_not_needed() -> None:
    """As its configuration says, or the index of its folder; all parts are where nothing is said."""
    own = {"unet": TINY["sd2"].unet, "autoencoder": TINY["sd2"].autoencoder}
    said = [Claim(slot, own.get(slot), "the metadata") for slot in model_slots()]
    assert needed(file_of({}), said) == ["unet", "autoencoder"]
    classes = ["diffusers", "X"]
    for absent in ({}, {"text_encoder": [None, None]}):
        index = {"_class_name": "LDMPipeline", "unet": classes, "vae": classes, **absent}
        assert needed(file_of({}, **{MODEL_INDEX: index}), []) == ["unet", "autoencoder"]
    assert needed(file_of({}), []) == ["text_encoder", "unet", "autoencoder"]
    config = replace(TINY["sd2"], text_encoder=None)
    assert part_configs(config) == {"unet": config.unet, "autoencoder": config.autoencoder}


def test_registration_ends(tmp_path: Path) -> None:
    before = parts()
    registration = register(TOY)
    assert parts() == (TOY, *before)
    with pytest.raises(ValueError, match="a part 'toy' is already registered"):
        register(TOY)
    registration.remove()
    registration.remove()
    assert parts() == before
    with pytest.raises(CheckpointError, match="no registered part has a configuration of type ToyConfig"):
        ldm_core.save(Toy(ToyConfig()), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="fills must be a field of LatentDiffusionConfig, not 'nose'"):
        register(Part("toy", "toy", ToyConfig, Toy, TOY.layouts, fills="nose"))


SLOTS = tuple(part_configs(TINY["sd2"]))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("slot", SLOTS)
def test_each_part_of_a_model_alone(slot: str, tmp_path: Path) -> None:
    """Its configuration goes with it, so it loads without a word; and with others it makes the model."""
    model = random_model(TINY["sd2"])
    network = model.modules[slot]
    ldm_core.save(network, tmp_path / "alone.safetensors", dtype=torch.float16)
    ldm_core.convert(tmp_path / "alone.safetensors", tmp_path / "alone.ckpt")
    loaded = ldm_core.load_part(tmp_path / "alone.ckpt", slot)
    assert loaded.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float())
    with pytest.raises(CheckpointError, match="a diffusers folder contains a whole model, not one part"):
        ldm_core.convert(tmp_path / "alone.safetensors", tmp_path / "folder")
    others = {other: tmp_path / f"{other}.safetensors" for other in SLOTS if other != slot}
    for other, path in others.items():
        ldm_core.save(model.modules[other], path)
    whole = ldm_core.load(tmp_path / "alone.safetensors", config=model.config, **others)  # type: ignore[arg-type]
    assert whole.config == model.config
