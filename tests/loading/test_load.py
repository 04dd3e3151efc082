"""Loading: where the configuration comes from, what is refused, and that weights arrive unchanged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.configs import SMALL
from support.reference import random_model
from support.small_checkpoints import tensors_of
from support.weights import same_weights

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect, save
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import SD1, SD2_BASE, SD2_V, NoiseScheduleConfig
from ldm_core.loading import save as saving
from ldm_core.loading.decide import Decision, decide
from ldm_core.loading.evidence import evidence
from ldm_core.loading.find import ema_key, find_parts
from ldm_core.loading.load import bundled_model
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion
from ldm_core.noise_schedule import NoiseSchedule

EMOJI_YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.012
    timesteps: 1000
    image_size: 8
    channels: 16
    conditioning_key: crossattn
    parameterization: v
    scale_factor: 0.5443753482811984
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 8
        in_channels: 16
        out_channels: 16
        model_channels: 64
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 1
        channel_mult: [2, 3, 3]
        num_heads: 2
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 128
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 16
        ddconfig:
          double_z: true
          z_channels: 16
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: 32
          ch_mult: [1, 1, 2, 4, 4]
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


SAVED = [("sd1", "ckpt"), ("sd2", "ckpt"), *((kind, "safetensors") for kind in SMALL)]
MORE_SAVED = [(kind, "ckpt") for kind in SMALL if (kind, "ckpt") not in SAVED]


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("kind", "ending"), [*SAVED, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_SAVED)]
)
def test_save_then_load_is_the_identity(kind: str, ending: str, tmp_path: Path) -> None:
    model = random_model(SMALL[kind])
    path = tmp_path / f"model.{ending}"
    save(model, path)
    loaded = ldm_core.load(path)
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left"


@pytest.mark.slow
def test_a_mapped_model_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    """Its weights are views of the file that is being replaced."""
    model = random_model(SMALL["sd1"])
    path = tmp_path / "model.safetensors"
    save(model, path)
    for _ in range(2):
        save(ldm_core.load(path), path)
    assert same_weights(ldm_core.load(path), model)


def test_the_bundled_model_loads_and_says_what_it_is(bundled: LatentDiffusion) -> None:
    assert bundled.config.latent_scale == 0.5443753482811984
    assert bundled.config.image_size == 128
    assert bundled.config.prediction == "v"
    assert bundled.dtype == torch.float32
    report = inspect(bundled_model())
    assert report.parts["unet"]["parameters"] == 16_285_712
    assert report.unknown == ()
    assert set(report.dtypes) == {"float16", "int64"}


def test_a_yaml_beside_the_checkpoint_is_used(tmp_path: Path, bundled: LatentDiffusion) -> None:
    path = tmp_path / "emoji.safetensors"
    save_file(load_file(bundled_model()), path)  # without metadata
    with pytest.raises(CheckpointError, match="pass config="):
        ldm_core.load(path)
    (tmp_path / "emoji.yaml").write_text(EMOJI_YAML)
    loaded = ldm_core.load(path)
    assert loaded.config.unet == bundled.config.unet
    assert loaded.config.text_encoder == bundled.config.text_encoder
    assert loaded.config.latent_scale == bundled.config.latent_scale
    assert loaded.config.prediction == bundled.config.prediction
    assert same_weights(loaded, bundled)


def test_a_yaml_can_be_given_by_its_path(tmp_path: Path, bundled: LatentDiffusion) -> None:
    yaml = tmp_path / "elsewhere.yaml"
    yaml.write_text(EMOJI_YAML.replace("scale_factor: 0.5443753482811984", "scale_factor: 0.2"))
    assert ldm_core.load(bundled_model(), config=yaml).config.latent_scale == 0.2
    assert ldm_core.load(bundled_model(), config=str(yaml)).config.latent_scale == 0.2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model_channels: 64",
            "model_channels: 96",
            r"unet.model_channels is 96 according to .*wrong.yaml, and 64 according to the tensors",
        ),
        ("ch_mult: [1, 1, 2, 4, 4]", "ch_mult: [1, 2, 2, 4, 4]", "autoencoder.ch_mult"),
        ("scale_factor: 0.5443753482811984", "scale_factor: -1", "latent_scale must be a positive number"),
        ("FrozenCLIPEmbedder", "FrozenT5Embedder", "FrozenT5Embedder is not one of"),
        ("context_dim: 128", "context_dimension: 128", "no value for 'context_dim'"),
        ("unet_config:", "unet:", "no section unet_config"),
        ("model:", "- model:", "not a YAML file|no section model"),
        ("channel_mult: [2, 3, 3]", "channel_mult: 3", "wrong type"),
    ],
)
def test_a_yaml_that_is_wrong_or_contradicts_the_file(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    yaml = tmp_path / "wrong.yaml"
    assert old in EMOJI_YAML
    yaml.write_text(EMOJI_YAML.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        ldm_core.load(bundled_model(), config=yaml)


def test_a_yaml_says_which_layer_of_the_text_encoder(published: dict[str, Any]) -> None:
    """open_clip's class takes the last layer unless it is told; SD2's files tell it."""
    from ldm_core.loading.compvis_yaml import from_yaml

    config = published["stable-diffusion-2/v2-inference"]["config"]
    stage = config["params"]["cond_stage_config"]
    assert stage["params"]["layer"] == "penultimate"
    assert from_yaml({"model": config}).text_encoder.clip_skip == 1
    stage["params"] = {"freeze": True}
    assert from_yaml({"model": config}).text_encoder.clip_skip == 0
    stage["params"] = {"layer": "hidden"}
    with pytest.raises(ValueError, match="FrozenOpenCLIPEmbedder's layer must be one of last, penultimate"):
        from_yaml({"model": config})
    stage["params"] = {"layer": "penultimate"}


def test_a_schedule_that_no_file_can_keep_is_not_lost_in_silence(tmp_path: Path) -> None:
    model = random_model(SMALL["sd1"])
    other = replace(model, noise_schedule=NoiseSchedule(betas=model.noise_schedule.betas * 0.9))
    with pytest.raises(CheckpointError, match="betas do not match its configuration"):
        save(other, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_measured_latent_scale_comes_from_the_file(tmp_path: Path) -> None:
    """With scale_by_std CompVis measures the scale in training and stores it."""
    path, yaml = tmp_path / "emoji.safetensors", tmp_path / "emoji.yaml"
    tensors = load_file(bundled_model())
    save_file(tensors, path)
    yaml.write_text(EMOJI_YAML.replace("scale_factor: 0.5443753482811984", "scale_by_std: true"))
    with pytest.raises(CheckpointError, match="requires a scale_factor in the checkpoint, which has none"):
        ldm_core.load(path)
    save_file({**tensors, "scale_factor": torch.tensor(0.25)}, path)
    assert ldm_core.load(path).config.latent_scale == 0.25
    yaml.write_text(EMOJI_YAML)
    with pytest.raises(
        CheckpointError,
        match=r"latent_scale is 0\.544\d+ according to .*emoji.yaml, and 0\.25 according to the tensor scale",
    ):
        ldm_core.load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_heads": 0},
        {"num_heads": -1},
        {"channel_mult": ()},
        {"num_res_blocks": 0},
        {"transformer_depth": 0},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ldm_core.config.ConfigError, match="must"):
        replace(SD1.unet, **fields)


def test_a_yaml_cannot_run_code(tmp_path: Path) -> None:
    yaml = tmp_path / "evil.yaml"
    yaml.write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n")
    with pytest.raises(CheckpointError, match="not a YAML file"):
        ldm_core.load(bundled_model(), config=yaml)
    assert not (tmp_path / "ran").exists()


def test_a_config_that_contradicts_the_file(small: tuple[LatentDiffusion, Path]) -> None:
    _, path = small
    with pytest.raises(
        CheckpointError,
        match=r"small.safetensors contradicts preset sd1:\n    text_encoder.width is 768 .*, and 64 ",
    ):
        ldm_core.load(path, config="sd1")
    with pytest.raises(ValueError, match="unknown model configuration 'sd9'; expected one of sd1, "):
        ldm_core.load(path, config="sd9")


def test_a_given_config_wins_over_metadata(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    config = replace(model.config, latent_scale=0.5)
    assert ldm_core.load(path, config=config).config == config


def test_ema_weights_are_loaded_when_asked_for(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    tensors = tensors_of(path)
    with pytest.raises(CheckpointError, match="no averaged"):
        ldm_core.load(path, ema=True, config=model.config)
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="no averaged"):
        ldm_core.load(path, ema=True, config=model.config)
    unet = [k for k in tensors if k.startswith("model.diffusion_model.")]
    tensors |= {ema_key(k.removeprefix("model.diffusion_model.")): tensors[k] + 1 for k in unet}
    save_file(tensors, path)
    plain, averaged = (file_tensors(ldm_core.load(path, ema=e, config=model.config)) for e in (False, True))
    assert all(torch.equal(averaged[k], plain[k] + 1) for k in unet)
    del tensors[ema_key(unet[0].removeprefix("model.diffusion_model."))]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="no averaged weights for"):
        ldm_core.load(path, ema=True, config=model.config)


def test_betas_in_the_file_must_be_the_configurations(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    tensors = tensors_of(path)
    tensors["betas"] = NoiseSchedule(model.config.noise_schedule).betas.half()
    save_file(tensors, path)
    ldm_core.load(path, config=model.config)
    other = replace(model.config, noise_schedule=NoiseScheduleConfig(linear_end=0.02))
    with pytest.raises(
        CheckpointError,
        match=r"is 1000 betas from 0.00085\d* to 0.02 .*, and 1000 betas from 0.00085\d* to 0.012",
    ):
        ldm_core.load(path, config=other)


def test_dtype(small: tuple[LatentDiffusion, Path]) -> None:
    model, path = small
    save(model, path, dtype=torch.bfloat16)
    assert ldm_core.load(path).dtype == torch.float32
    half = ldm_core.load(path, dtype=torch.float16)
    assert {p.dtype for m in half.modules.values() for p in m.parameters()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolutions_of_16_bits_are_channels_last(
    small: tuple[LatentDiffusion, Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    """And a file that is saved from them has the usual order of values."""
    _, path = small
    model = ldm_core.load(path, dtype=dtype)
    weights = [p for m in model.modules.values() for p in m.parameters() if p.ndim == 4]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    save(model, tmp_path / "again.safetensors")
    assert same_weights(ldm_core.load(tmp_path / "again.safetensors", dtype=dtype), model)


def decided(listed: dict[str, list[int]], metadata: dict[str, str], *args: Any, **options: Any) -> Decision:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in listed.items()}
    checkpoint = Checkpoint(path=Path("768.ckpt"), format="torch-zip", tensors=tensors, metadata=metadata)
    return decide("768.ckpt", evidence(checkpoint, find_parts(checkpoint), *args, **options))


def test_sd2_without_a_word_on_what_it_predicts_is_not_guessed(published: dict[str, Any]) -> None:
    listed = published["stable-diffusion-2/v2-inference-v"]["tensors"]
    left_open = decided(listed, {}, None)
    assert (left_open.prediction, left_open.choices) == (None, ("eps", "v"))
    assert left_open.config == SD2_BASE
    assert decided(listed, {}, None, prediction="v").config == SD2_V
    assert decided(listed, {}, "sd2-v").config == SD2_V
    assert decided(listed, {}, None, prediction="eps").config == SD2_BASE
    assert decided({**listed, "v_pred": [0]}, {}, None).config == SD2_V
    assert decided(listed, {"modelspec.prediction_type": "v"}, None).config == SD2_V
    assert decided(listed, {"modelspec.prediction_type": "epsilon"}, None).config == SD2_BASE
    with pytest.raises(CheckpointError, match="prediction must be 'eps', 'v' or 'x0', not 'x1'"):
        decided(listed, {}, None, prediction="x1")


def test_a_file_with_exactly_sd1s_tensors_is_sd1(published: dict[str, Any]) -> None:
    listed = published["stable-diffusion/v1-inference"]["tensors"]
    assert len(listed) == 1131
    assert decided(listed, {}, None).config == SD1
    assert decided(listed, {"modelspec.prediction_type": "v"}, None).config == replace(SD1, prediction="v")


def test_saving_refuses_what_it_cannot_write(small: tuple[LatentDiffusion, Path], tmp_path: Path) -> None:
    model, path = small
    with pytest.raises(CheckpointError, match="expected one of the suffixes"):
        save(model, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(model, tmp_path / "no" / "such" / "folder.safetensors")
    odd = replace(model, unet=torch.nn.Linear(2, 2))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="do not match its configuration"):
        save(odd, path)
    assert path.read_bytes() == before


def test_a_crash_while_saving_leaves_the_old_file(
    small: tuple[LatentDiffusion, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = small
    before = path.read_bytes()

    def full_disk(tensors: Any, metadata: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(saving.WRITERS, ".safetensors", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow  # copies the package and its model
def test_a_copied_package_finds_its_model(tmp_path: Path) -> None:
    """As in a wheel, where weights/ lies inside the package, and as in a source tree, where it is beside."""
    import subprocess
    import sys

    package = Path(ldm_core.__file__).parent
    shutil.copytree(package, tmp_path / "ldm_core", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (tmp_path / "ldm_core" / "weights").symlink_to(bundled_model().parent)
    code = "from ldm_core.loading.load import bundled_model; print(bundled_model())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(tmp_path / "ldm_core" / "weights" / "emoji.safetensors")


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    has_it: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_core.nn.placement.multiplies_bfloat16", lambda: has_it)
    assert ldm_core.load(dtype="auto").dtype == dtype
    assert ldm_core.load().dtype == torch.float32
    with pytest.raises(ValueError, match="floating-point type of torch or 'auto', not 'half'"):
        ldm_core.load(dtype="half")  # type: ignore[arg-type]
