"""The files of autoencoders: published tensor lists, YAML sections, diffusers settings, single parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from support.configs import TINY
from torch import Tensor

import ldm_core
from ldm_core.autoencoder import AutoencoderKL, AutoencoderVQ, AutoencoderVQConfig
from ldm_core.autoencoder.compvis_settings import autoencoder_in_yaml, vq_in_yaml
from ldm_core.autoencoder.names import compvis_map
from ldm_core.autoencoder.settings import autoencoder_settings, vq_config
from ldm_core.checkpoint import Checkpoint, CheckpointError
from ldm_core.checkpoint.key_map import to_file
from ldm_core.config import ConfigError, LatentDiffusionConfig
from ldm_core.loading.find import find_parts
from ldm_core.loading.parts import fitted, part_of
from ldm_core.loading.weights import blank_network

FIRST_STAGES = "latent-diffusion/first_stage_models/"
VQ = ("vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16")
KL = ("kl-f4", "kl-f8", "kl-f16", "kl-f32")
TINY_VQ = AutoencoderVQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=50)


def on_meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def from_published_yaml(entry: dict[str, Any]) -> Any:
    """The configuration of a standalone autoencoder's YAML, whose `model` section is a first stage's."""
    stage = {"first_stage_config": entry["config"]}
    vq = entry["config"]["target"].endswith(("VQModel", "VQModelInterface"))
    return vq_in_yaml(stage) if vq else autoencoder_in_yaml(stage)


# --- CompVis's files ---


@pytest.mark.parametrize("name", VQ + KL)
def test_every_tensor_of_a_published_file_is_one_parameter(
    name: str, published: dict[str, dict[str, Any]]
) -> None:
    """With the training's loss beside them, as in the published files, and back to exactly these names."""
    entry = published[FIRST_STAGES + name]
    loss = {"loss.discriminator.main.0.weight": [64, 3, 4, 4], "loss.logvar": []}
    tensors = on_meta(entry["tensors"] | loss)
    (source,) = find_parts(Checkpoint(Path(name), "torch-zip", tensors, {})).values()
    config = from_published_yaml(entry)
    assert part_of(config) is source.part
    assert source.part.name == ("autoencoder_vq" if name in VQ else "autoencoder")
    assert fitted(config, source.prove()) == config

    network = blank_network(config)
    parameters, keys, problems = source.parameters(config, network)
    assert not any(problems.values())
    assert parameters.keys() == network.state_dict().keys() == keys.keys()
    back = to_file(compvis_map(config), network.state_dict())
    assert {key: list(value.shape) for key, value in back.items()} == entry["tensors"]


def test_levels_and_middle_that_attend_are_proved(published: dict[str, dict[str, Any]]) -> None:
    expected = {
        "vq-f4": ([], True), "vq-f4-noattn": ([], False), "vq-f8": ([3], True), "vq-f16": ([4], True),
    }  # fmt: skip
    for name, (levels, middle) in expected.items():
        shapes = on_meta(published[FIRST_STAGES + name]["tensors"])
        (source,) = find_parts(Checkpoint(Path(name), "torch-zip", shapes, {})).values()
        proven = source.prove()
        assert [level for level in range(5) if proven.has_attention(level)] == levels
        assert proven.middle_attention == middle


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("latent-diffusion/ldm/celeba256", AutoencoderVQ),
        ("latent-diffusion/ldm/cin256", AutoencoderVQ),
        ("latent-diffusion/ldm/inpainting_big", AutoencoderVQ),
        ("latent-diffusion/ldm/lsun_churches256", AutoencoderKL),
        ("stable-diffusion/v1-inference", AutoencoderKL),
    ],
)
def test_first_stages_within_published_models(
    name: str, kind: type, published: dict[str, dict[str, Any]]
) -> None:
    entry = published[name]
    found = find_parts(Checkpoint(Path(name), "torch-zip", on_meta(entry["tensors"]), {}))["autoencoder"]
    assert found.part.network is kind
    config = from_published_yaml({"config": entry["config"]["params"]["first_stage_config"]})
    assert fitted(config, found.prove()) == config
    assert not any(found.parameters(config, blank_network(config))[2].values())


def section(**changes: Any) -> dict[str, Any]:
    """VQ-f8's section, with changes of `params` and, as `dd_…`, of `ddconfig`."""
    dd = {
        "double_z": False, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [32], "dropout": 0.0,
    }  # fmt: skip
    dd |= {key.removeprefix("dd_"): value for key, value in changes.items() if key.startswith("dd_")}
    loss = {"target": "ldm.modules.losses.vqperceptual.DummyLoss"}
    params = {"embed_dim": 4, "n_embed": 16384, "ddconfig": dd, "lossconfig": loss}
    params |= {key: value for key, value in changes.items() if not key.startswith("dd_")}
    return {"first_stage_config": {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}}


def test_yaml_section() -> None:
    expected = AutoencoderVQConfig(4, 4, 256, 3, 3, 128, (1, 2, 2, 4), 2, (32,), n_embed=16384)
    assert vq_in_yaml(section()) == expected
    for harmless in (
        {"sane_index_shape": True}, {"remap": None}, {"dd_attn_type": "vanilla-xformers"}, {"monitor": "x"},
    ):  # fmt: skip
        assert vq_in_yaml(section(**harmless)) == expected
    # "none" removes the attention of the levels, too
    without = replace(expected, attn_resolutions=(), middle_attention=False)
    assert vq_in_yaml(section(dd_attn_type="none")) == without


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remap": "data/used.npy"}, "remap is 'data/used.npy'"),
        ({"dd_double_z": True}, "double_z false"),
        (
            {"dd_attn_type": "linear"},
            "attn_type must be one of vanilla, vanilla-xformers, none, not",
        ),
        ({"dd_tanh_out": True}, "tanh_out is True; only False is supported"),
        ({"dd_resamp_with_conv": False}, "resamp_with_conv is False"),
        ({"n_embed": "many"}, "n_embed must be an int"),
    ],
)
def test_yaml_sections_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vq_in_yaml(section(**changes))


def test_a_kl_section_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="attn_type 'none' is supported for autoencoders with vector"):
        autoencoder_in_yaml(section(dd_attn_type="none", dd_double_z=True))
    with pytest.raises(ConfigError, match="without double_z is not a KL autoencoder"):
        autoencoder_in_yaml(section())


# --- whole models, and parts alone ---


@pytest.fixture(scope="module")
def model() -> ldm_core.LatentDiffusion:
    torch.manual_seed(0)
    sd1 = TINY["sd1"]
    unet = replace(sd1.unet, in_channels=3, out_channels=3)
    return ldm_core.build(replace(sd1, unet=unet, autoencoder=TINY_VQ, latent_scale=1.0))


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_model_is_saved_and_loaded(name: str, model: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    ldm_core.save(model, tmp_path / name)
    path = tmp_path / name
    again = ldm_core.load(path, config=None if name.endswith("safetensors") else model.config)
    assert again.config == model.config
    assert isinstance(again.autoencoder, AutoencoderVQ)
    assert equal(again.autoencoder, model.autoencoder)
    part = ldm_core.load_part(path, "autoencoder_vq")
    assert equal(part, model.autoencoder)
    with pytest.raises(CheckpointError, match="contains a VQ autoencoder, not an autoencoder"):
        ldm_core.load_part(path, "autoencoder")


def test_a_yaml_file_beside_a_model(model: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    """Its first stage's class decides: a section of the other kind, or of an unknown one, is an error."""
    from ldm_core.loading.compvis_yaml import from_yaml

    stage = section()["first_stage_config"]
    document = {
        "model": {
            "params": {
                "image_size": 32,
                "first_stage_config": stage,
                "unet_config": {
                    "params": {
                        "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": 1,
                        "attention_resolutions": [1], "channel_mult": [1, 2], "num_heads": 8,
                        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768,
                    }
                },
                "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
            }
        }
    }  # fmt: skip
    config = from_yaml(document)
    assert config.autoencoder == vq_in_yaml(section())
    assert config.image_size == 256
    stage["target"] = "ldm.models.autoencoder.IdentityFirstStage"
    with pytest.raises(
        ConfigError,
        match="autoencoder IdentityFirstStage is not one of VQModelInterface, VQModel, AutoencoderKL",
    ):
        from_yaml(document)


def test_a_part_alone_needs_no_configuration(tmp_path: Path) -> None:
    """As a standalone file with its loss, in CompVis's and in diffusers' names."""
    torch.manual_seed(0)
    autoencoder = AutoencoderVQ(replace(TINY_VQ, attn_resolutions=(128,), middle_attention=False))
    extras = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    extras["colorize"] = torch.zeros(3, 7, 1, 1)
    for layout in part_of(autoencoder.config).layouts:
        tensors = to_file(layout.key_map(autoencoder.config), autoencoder.state_dict())
        path = tmp_path / f"{layout.name}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()} | extras, path)
        loaded = ldm_core.load_part(path, "autoencoder_vq")
        assert equal(loaded, autoencoder)
        assert [loaded.config.has_attention(level) for level in (0, 1)] == [False, True]
        report = ldm_core.inspect(path)
        assert report.load == f"ldm_core.load(MODEL, autoencoder={str(path)!r})"
        assert (report.unknown, report.suspicious) == ((), ())


def test_a_codebook_that_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = to_file(compvis_map(TINY_VQ), AutoencoderVQ(TINY_VQ).state_dict())
    for wrong, message in (
        (torch.zeros(50, 4), r"quantize.embedding.weight: expected \(50, 3\), got \(50, 4\)"),
        (torch.zeros(()), "do not form a known autoencoder_vq"),
        (torch.zeros(0, 3), r"n_embed must be an int in 1\.\.1048576, not 0"),
    ):
        path = tmp_path / "a.safetensors"
        save_file(
            {k: v.contiguous() for k, v in tensors.items()} | {"quantize.embedding.weight": wrong}, path
        )
        with pytest.raises(CheckpointError, match=message):
            ldm_core.load_part(path, "autoencoder_vq")


def test_a_model_with_an_autoencoder_of_the_other_kind_is_refused(
    model: ldm_core.LatentDiffusion, tmp_path: Path
) -> None:
    ldm_core.save(model, tmp_path / "a.safetensors")
    kl = replace(model.config, autoencoder=replace(TINY["sd1"].autoencoder, embed_dim=3, z_channels=3))
    with pytest.raises(CheckpointError, match="autoencoder is"):
        ldm_core.load(tmp_path / "a.safetensors", config=kl)


# --- diffusers' settings ---


def test_a_folder_of_one_part_is_diffusers_own(tmp_path: Path) -> None:
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        latent_channels=4,
        vq_embed_dim=5,
        num_vq_embeddings=40,
        mid_block_add_attention=False,
    ).eval()
    theirs.save_pretrained(tmp_path / "vqvae")
    ours = ldm_core.load_part(tmp_path / "vqvae", "autoencoder_vq")
    expected = AutoencoderVQConfig(
        5, 4, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(128,), n_embed=40,
        middle_attention=False,
    )  # fmt: skip
    assert ours.config == expected
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        h = theirs.encode(x).latents
        assert (ours.encode(x).mode() - h).abs().max() < 1e-5 * h.abs().max()


def test_settings_and_back() -> None:
    configs = (
        TINY_VQ,
        replace(TINY_VQ, embed_dim=6, middle_attention=False),
        replace(TINY_VQ, attn_resolutions=(256, 128)),
    )
    for config in configs:
        settings = autoencoder_settings(config, 64, 1.0)
        assert vq_config(json.loads(json.dumps(settings))) == config
    without = {k: v for k, v in autoencoder_settings(TINY_VQ, 64, 1.0).items() if k != "vq_embed_dim"}
    assert vq_config(without) == TINY_VQ


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm_type", "spatial", "vqvae/config.json: norm_type is 'spatial'; only 'group' is supported"),
        ("norm_num_groups", 16, "norm_num_groups is 16"),
        ("act_fn", "relu", "act_fn is 'relu'"),
        ("num_vq_embeddings", 0, "n_embed must be an int"),
        ("num_vq_embeddings", "256", "num_vq_embeddings must be a whole number"),
        ("mid_block_add_attention", "no", "middle_attention must be true or false"),
        ("down_block_types", ["DownBlock2D"], "are not those of an autoencoder"),
        ("block_out_channels", None, "vqvae/config.json"),
    ],
)
def test_settings_that_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vq_config(autoencoder_settings(TINY_VQ, 64, 1.0) | {name: value})


def test_a_kl_folder_cannot_state_two_numbers_of_channels() -> None:
    with pytest.raises(ConfigError, match="embed_dim 3 and z_channels 4"):
        autoencoder_settings(replace(TINY["sd1"].autoencoder, embed_dim=3), 64, 1.0)


def test_a_models_folder_has_the_codebook(tmp_path: Path) -> None:
    """The folder of an unconditional model: no pipeline of diffusers joins CLIP's text and a codebook."""
    sd1 = TINY["sd1"]
    own = {"context_dim": None, "num_heads": None, "num_head_channels": 8}
    unet = replace(sd1.unet, in_channels=3, out_channels=3, **own)
    config = replace(sd1, text_encoder=None, unet=unet, autoencoder=TINY_VQ, latent_scale=1.0)
    model = ldm_core.build(config)
    ldm_core.save(model, tmp_path / "folder", layout="diffusers")
    theirs, info = VQModel.from_pretrained(tmp_path / "folder" / "vqvae", output_loading_info=True)
    assert not any(info.values())
    assert theirs.config.scaling_factor == 1.0
    again = ldm_core.load(tmp_path / "folder")
    assert again.config == model.config
    assert equal(again.autoencoder, model.autoencoder)


def test_from_dict_tells_the_autoencoders_apart(model: ldm_core.LatentDiffusion) -> None:
    for config in (model.config, TINY["sd1"]):
        again = LatentDiffusionConfig.from_dict(config.to_dict())
        assert type(again.autoencoder) is type(config.autoencoder)
    damaged = model.config.to_dict()
    damaged["autoencoder"]["codes"] = 3
    with pytest.raises(ConfigError, match="AutoencoderVQConfig: unknown field"):
        LatentDiffusionConfig.from_dict(damaged)
