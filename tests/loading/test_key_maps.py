"""Key maps against the tensor lists of published models: complete, exact in shape, and invertible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.configs import SMALL
from support.examples import examples
from support.published_names import PUBLISHED
from support.reference import random_model
from torch import Tensor

from ldm_core import build
from ldm_core.autoencoder import AutoencoderKL
from ldm_core.autoencoder.names import compvis_map as autoencoder_map
from ldm_core.checkpoint import CheckpointError
from ldm_core.checkpoint.key_map import (
    CONV_1X1,
    FUSED_QKV,
    SAME,
    Entry,
    expand,
    to_file,
    to_parameters,
    within,
)
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import PRESETS, AutoencoderConfig, LatentDiffusionConfig, UNetConfig
from ldm_core.loading.compvis_yaml import from_yaml
from ldm_core.loading.evidence import matching_presets, proofs
from ldm_core.loading.find import ema_key, find_parts, ignored
from ldm_core.loading.original_file import file_map
from ldm_core.loading.parts import fitted, part_configs, part_of
from ldm_core.loading.save import file_tensors
from ldm_core.loading.weights import blank_network
from ldm_core.model import LatentDiffusion

NAMES = pytest.mark.parametrize("name", PUBLISHED)

# The published lists hold these besides parameters: buffers that follow from the configuration.
BUFFERS = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.model.attn_mask",
}


def shapes_of(model: LatentDiffusion) -> dict[str, torch.Size]:
    return {
        f"{part}.{name}": value.shape
        for part, module in model.modules.items()
        for name, value in module.state_dict().items()
    }


def on_meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def listed(name: str) -> LatentDiffusionConfig:
    """The preset as its list of tensors is: the lists of unCLIP's files lack the image encoder."""
    config = PRESETS[name]
    if not isinstance(config.conditioner, UnclipConfig):
        return config
    return replace(config, conditioner=replace(config.conditioner, image_encoder=None))


@pytest.mark.one_in(3)
@NAMES
def test_every_published_tensor_is_one_parameter_of_its_shape(name: str, published: dict[str, Any]) -> None:
    tensors = on_meta(published[PUBLISHED[name]]["tensors"])
    shapes = shapes_of(build(listed(name), device="meta"))
    key_map = file_map(part_configs(listed(name)))
    assert set(tensors) - set(key_map) == set(tensors) & BUFFERS
    parameters = to_parameters(key_map, tensors, shapes, source=name)
    assert parameters.keys() == shapes.keys()
    named = [p for entry in key_map.values() for p in entry.parameters]
    assert len(named) == len(set(named)), "a parameter comes from two file tensors"


@pytest.mark.one_in(3)
@NAMES
def test_saving_gives_exactly_the_published_keys_and_shapes(name: str, published: dict[str, Any]) -> None:
    expected = {key: tuple(shape) for key, shape in published[PUBLISHED[name]]["tensors"].items()}
    saved = file_tensors(build(listed(name), device="meta"))
    assert {key: tuple(value.shape) for key, value in saved.items()} == expected


@pytest.mark.parametrize(
    ("part", "count"), [("unet", 859_520_964), ("autoencoder", 83_653_863), ("text_encoder", 123_060_480)]
)
def test_sd1_has_the_published_number_of_parameters(part: str, count: int) -> None:
    module = build(PRESETS["sd1"], device="meta").modules[part]
    assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", SMALL)
def test_a_map_and_its_inverse_give_back_every_value(kind: str) -> None:
    model = random_model(SMALL[kind])
    parameters = {
        f"{part}.{name}": value
        for part, module in model.modules.items()
        for name, value in module.state_dict().items()
    }
    key_map = file_map(part_configs(SMALL[kind]))
    back = to_parameters(key_map, to_file(key_map, parameters), shapes_of(model), source=kind)
    assert back.keys() == parameters.keys()
    assert all(torch.equal(back[name], parameters[name]) for name in parameters)


@given(
    st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3), st.integers(1, 2), st.sets(st.integers(0, 2))
)
@settings(max_examples=5, deadline=None)
def test_a_parameter_of_any_network_has_one_place_in_every_layout(
    widths: list[int], blocks: int, attends: set[int]
) -> None:
    """Levels without attention or resampling, and widths that change or do not, number blocks differently."""
    unet = UNetConfig(
        model_channels=32,
        channel_mult=tuple(widths),
        num_res_blocks=blocks,
        attention_resolutions=tuple(2**i for i in attends),
        context_dim=8,
        adm_in_channels=8,
    )
    autoencoder = AutoencoderConfig(
        ch=32,
        ch_mult=tuple(widths),
        num_res_blocks=blocks,
        attn_resolutions=tuple(256 // 2**i for i in attends),
    )
    for config in (unet, autoencoder):
        names = dict(blank_network(config).named_parameters()).keys()
        for layout in part_of(config).layouts:
            entries = layout.key_map(config).values()
            assert sorted(p for entry in entries for p in entry.parameters) == sorted(names)
            assert all(len(entry.parameters) == 1 for entry in entries)


def test_a_template_renames_renumbers_and_joins() -> None:
    template = {
        "blocks.{i}.norm": "layers.{n}.ln",
        **within("blocks.{i}.", "layers.{n}.", {f"{x}.weight": ("qk_weight", FUSED_QKV) for x in "qk"}),
        "proj": ("proj", CONV_1X1),
        "scale": "log_scale",
        "head.weight": None,
    }
    parameters = ["blocks.2.norm.weight", "blocks.2.norm.bias", "blocks.2.q.weight", "blocks.2.k.weight"]
    parameters += ["proj.weight", "proj.bias", "scale", "head.weight"]
    assert expand(template, parameters, lambda i=0: {"n": 7 - i}) == {
        "layers.5.ln.weight": Entry(("blocks.2.norm.weight",)),
        "layers.5.ln.bias": Entry(("blocks.2.norm.bias",)),
        "layers.5.qk_weight": Entry(("blocks.2.q.weight", "blocks.2.k.weight"), FUSED_QKV),
        "proj.weight": Entry(("proj.weight",), CONV_1X1),
        "proj.bias": Entry(("proj.bias",)),
        "log_scale": Entry(("scale",)),
    }
    with pytest.raises(KeyError, match="gate"):
        expand(template, ["blocks.0.gate.weight"])


@given(st.integers(1, 4), st.integers(1, 5))
@examples(25)
def test_transforms_are_invertible(rows: int, columns: int) -> None:
    for transform, shape in (
        (SAME, (rows, columns)),
        (CONV_1X1, (rows, columns, 1, 1)),
        (FUSED_QKV, (3 * rows, columns)),
    ):
        stored = torch.randn(shape)
        assert torch.equal(transform.save(transform.load(stored)), stored)


def blanks(name: str) -> dict[str, Any]:
    """A preset's parts without what shapes cannot prove."""
    return {slot: part_of(own).blank(own) for slot, own in part_configs(PRESETS[name]).items()}


@NAMES
def test_shapes_prove_the_preset_up_to_what_they_cannot_prove(name: str, published: dict[str, Any]) -> None:
    tensors = on_meta(published[PUBLISHED[name]]["tensors"])
    proven = proofs(find_parts(Checkpoint(Path(name), "safetensors", tensors, {})))
    # The published lists lack unCLIP's image encoder, which a file may lack.
    lacking = {slot for slot, own in blanks(name).items() if isinstance(own, UnclipConfig)}
    assert proven == {slot: own for slot, own in blanks(name).items() if slot not in lacking}
    expected = ["sd2-base", "sd2-v"] if name in ("sd2-base", "sd2-v") else [name]
    assert matching_presets(proven) == expected


@NAMES
def test_published_yaml_gives_the_preset(name: str, published: dict[str, Any]) -> None:
    """All but the picture size: the YAML files of SD2-v and unCLIP give 512, and those models draw 768."""
    config = from_yaml({"model": published[PUBLISHED[name]]["config"]})
    fields = ("text_encoder", "autoencoder", "noise_schedule", "latent_scale", "prediction")
    for field in fields:
        assert getattr(config, field) == getattr(PRESETS[name], field), field
    assert sorted(config.unet.attention_resolutions) == sorted(PRESETS[name].unet.attention_resolutions)
    assert all(fitted(getattr(config, slot), blank) is not None for slot, blank in blanks(name).items())
    assert config.unet.num_heads == PRESETS[name].unet.num_heads
    assert config.unet.num_head_channels == PRESETS[name].unet.num_head_channels


@pytest.mark.parametrize("f", [4, 8, 16, 32])
def test_every_tensor_of_the_papers_kl_autoencoders_is_one_parameter(
    f: int, published: dict[str, Any]
) -> None:
    """Their files have no prefix; those of f=16 and f=32 have attention in their coarse levels, too."""
    entry = published[f"latent-diffusion/first_stage_models/kl-f{f}"]
    params = entry["config"]["params"]
    fields = {key: value for key, value in params["ddconfig"].items() if key not in ("double_z", "dropout")}
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    config = AutoencoderConfig(embed_dim=params["embed_dim"], **fields)
    assert config.downsampling == f
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoencoderKL(config).state_dict().items()}
    tensors = {key: t for key, t in on_meta(entry["tensors"]).items() if not key.startswith("loss.")}
    key_map = autoencoder_map(config)
    assert key_map.keys() == tensors.keys()
    assert to_parameters(key_map, tensors, shapes, source=f"kl-f{f}").keys() == shapes.keys()


def test_missing_wrong_and_unknown_tensors_are_named_in_groups() -> None:
    config = SMALL["sd1"]
    model = build(config, device="meta")
    tensors = file_tensors(model)
    key_map = file_map(part_configs(config))
    for i in range(12):
        del tensors[
            f"cond_stage_model.transformer.text_model.encoder.layers.{i // 6}.self_attn."
            f"{'qkv'[i % 3]}_proj.{('weight', 'bias')[i % 6 // 3]}"
        ]
    tensors["model.diffusion_model.out.0.weight"] = torch.empty(33, device="meta")
    with pytest.raises(CheckpointError) as caught:
        to_parameters(key_map, tensors, shapes_of(model), source="x.ckpt")
    message = str(caught.value)
    assert message.startswith("x.ckpt does not fit the model")
    assert "12 tensor(s) missing" in message
    assert "… and 4 more" in message
    assert "model.diffusion_model.out.0.weight: expected (32,), got (33,)" in message
    assert len(message.splitlines()) <= 20


def test_ignored_keys_are_explicit() -> None:
    for key in ("alphas_cumprod", "model_ema.decay", "depth_model.model.weight"):
        assert ignored(key)
    for key in file_map(part_configs(PRESETS["sd1"])) | file_map(part_configs(PRESETS["sd2-base"])):
        assert ignored(key) is None, key
    assert ignored("model.diffusion_model.something_new") is None


def test_ema_names_are_unique() -> None:
    keys = [k for k in file_map(part_configs(PRESETS["sd1"])) if k.startswith("model.diffusion_model.")]
    assert len({ema_key(k.removeprefix("model.diffusion_model.")) for k in keys}) == len(keys)
    assert ema_key("input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_configs_survive_json() -> None:
    import json

    for config in PRESETS.values():
        assert LatentDiffusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
