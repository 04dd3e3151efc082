"""What `inspect` says of a file, and that it neither reads the numbers nor passes on terminal codes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.configs import SMALL, TINY
from support.reference import random_model
from support.wild_files import trained
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect, save
from ldm_core.config import PRESETS
from ldm_core.loading.diagnosis import TITLES
from ldm_core.loading.doctor import Report
from ldm_core.loading.evidence import CONFIG_KEY
from ldm_core.loading.find import ema_key
from ldm_core.loading.load import build, bundled_model
from ldm_core.loading.save import file_tensors


def test_the_bundled_model() -> None:
    report = inspect(bundled_model())
    assert report.format == "safetensors"
    assert report.tensors == 685
    assert {part: counts["parameters"] for part, counts in report.parts.items()} == {
        "unet": 16_285_712,
        "autoencoder": 4_001_395,
        "text_encoder": 7_127_424,
    }
    text = str(report)
    assert (
        "that matches no preset (proved: according to the file's own metadata, and its tensors agree)" in text
    )
    assert "float16 × 684, int64 × 1" in text
    assert report.claims[0].startswith("the file's own metadata: text_encoder, unet, autoencoder, ")
    assert report.claims[0].endswith("latent_scale 0.5443753482811984, prediction 'v', image_size 128")
    assert report.claims[1] == "the tensors: text_encoder, unet, autoencoder"
    assert json.loads(json.dumps(report.to_dict()))["presets"] == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sd1", ("sd1",)),
        ("sd2-v", ("sd2-base", "sd2-v")),
        ("instruct-pix2pix", ("instruct-pix2pix",)),
        ("gligen", ("gligen",)),
    ],
)
def test_a_file_of_4_gb_in_a_moment(name: str, found: tuple[str, ...], tmp_path: Path) -> None:
    """A sparse file of the real size: a safetensors header, and a hole where the numbers would be."""
    header, end = {}, 0
    for key, tensor in file_tensors(build(PRESETS[name], device="meta")).items():
        size = tensor.numel() * tensor.element_size()
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    assert path.stat().st_size > 4e9
    start = time.perf_counter()
    report = inspect(path)
    assert time.perf_counter() - start < 2
    assert report.presets == found
    assert all(counts["tensors"] for counts in report.parts.values())
    assert all(f"({preset})" in str(report) for preset in found)


def test_ema_unknown_and_missing_parts_are_said(tmp_path: Path) -> None:
    tensors = {k: v.contiguous() for k, v in file_tensors(random_model(SMALL["sd1"])).items()}
    unet = {k: v for k, v in tensors.items() if k.startswith("model.")}
    path = tmp_path / "unet.safetensors"
    extra = {"betas": torch.ones(3), "strange": torch.ones(2), "model_ema.decay": torch.ones(())}
    save_file({**unet, **extra}, path)
    report = inspect(path)
    assert not report.ema
    assert report.unknown == ("strange",)
    assert set(report.ignored) == {"betas", "model_ema.decay"}
    assert report.parts["text_encoder"]["tensors"] == 0
    assert "contains no text encoder and no autoencoder" in report.why
    save_file(
        {**unet, **{ema_key(k.removeprefix("model.diffusion_model.")): v.clone() for k, v in unet.items()}},
        path,
    )
    assert inspect(path).ema


def test_every_preset_has_a_title() -> None:
    assert set(TITLES) == set(PRESETS)


@pytest.mark.slow  # a process that imports everything
def test_a_text_encoder_with_a_projection_costs_no_compiler(tmp_path: Path) -> None:
    """PyTorch imports its compiler, in seconds, for one product of tensors on the meta device."""
    model = random_model(SMALL["sd2"])
    assert model.config.text_encoder.projection_dim is not None
    save(model, tmp_path / "sd2.safetensors")
    code = (
        "import sys, ldm_core; path = sys.argv[1]; ldm_core.checkpoint.inspect(path); ldm_core.load(path); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "sd2.safetensors")], check=True)


def damaged(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """A file's tensors with one thing wrong, deep in a part."""
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    if how == "missing":
        return {k: v for k, v in tensors.items() if k != key}
    if how == "of the wrong shape":
        return {**tensors, key: torch.ones(3)}
    return {**tensors, "first_stage_model.mean": torch.ones(3)}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", ["missing", "of the wrong shape", "unknown tensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_load_refuses_is_not_called_proved(how: str, whole: bool, tmp_path: Path) -> None:
    model = random_model(SMALL["sd1"])
    tensors = {k: v.contiguous() for k, v in damaged(file_tensors(model), how).items()}
    if not whole:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("cond_stage_model.")}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {CONFIG_KEY: json.dumps(model.config.to_dict())})
    report = inspect(path)
    assert report.sure != "proved"
    assert report.load is None
    assert any(how in sentence for sentence in report.suspicious)
    assert report.unknown == (("first_stage_model.mean",) if how.startswith("unknown") else ())
    with pytest.raises(CheckpointError):
        ldm_core.load(path)


def test_a_file_that_contradicts_itself_is_told_in_full(tmp_path: Path) -> None:
    model = random_model(SMALL["sd1"])
    tensors = {k: v.contiguous() for k, v in file_tensors(model).items()}
    path = tmp_path / "x.safetensors"
    metadata = {CONFIG_KEY: json.dumps(model.config.to_dict())}
    save_file({**tensors, "scale_factor": torch.tensor(1.0)}, path, metadata)
    report = inspect(path)
    assert report.load is None
    assert any("latent_scale" in sentence for sentence in report.suspicious)


def test_averages_that_load_would_refuse(tmp_path: Path) -> None:
    model = random_model(TINY["sd1"])
    tensors = trained({k: v.contiguous() for k, v in file_tensors(model).items()})
    path, key = tmp_path / "x.ckpt", "model_ema.diffusion_modelinput_blocks00weight"
    torch.save(tensors, path)
    assert not any("averaged weights" in sentence for sentence in inspect(path).suspicious)
    torch.save({k: v for k, v in tensors.items() if k != key}, path)
    assert any(key in sentence and "averaged weights" in sentence for sentence in inspect(path).suspicious)
    torch.save({**tensors, key: tensors[key] / 0}, path)
    assert inspect(path, check_values=True).not_finite == (key,)


def test_a_folder_of_an_adapter(tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = {f"{name}.lora_A.weight": torch.ones(4, 768), f"{name}.lora_B.weight": torch.ones(1280, 4)}
    save_file(pair, tmp_path / "pytorch_lora_weights.safetensors")
    assert inspect(tmp_path).family == "a LoRA, for models like SD1"


def test_names_cannot_drive_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    save_file({"\x1b[2Jgone": torch.ones(1)}, path, {"\x1b]0;title": "\x07"})
    text = str(inspect(path))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2Jgone" in text


def test_a_saved_ckpt_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "small.ckpt"
    save(random_model(SMALL["sd2"]), path)
    report = inspect(path)
    assert report.format == "torch-zip"
    assert report.foreign == ()
    assert "according to the file's own metadata" in str(report)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        inspect(tmp_path / "none.ckpt")


def test_adapters_are_named_with_what_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    pair = {f"{name}.lora_up.weight": torch.ones(1280, 4), f"{name}.lora_down.weight": torch.ones(4, 768)}
    save_file(pair, path, {"ss_steps": "1600"})
    report = inspect(path)
    assert (report.family, report.step, report.unknown) == ("a LoRA, for models like SD1", 1600, ())
    assert report.load == f"ldm_core.apply_lora(model, {str(path)!r})"
    for tensors, family in (
        ({"emb_params": torch.ones(2, 1024)}, "a textual inversion, for models like SD2"),
        ({"<cat-toy>": torch.ones(768)}, "a textual inversion, for models like SD1"),
        ({"<cat-toy>": torch.ones(2, 128)}, "a textual inversion"),
    ):
        save_file(tensors, path)
        report = inspect(path)
        assert report.family == family
        assert report.load == f"ldm_core.apply_textual_inversion(model, {str(path)!r})"


def test_not_a_number_is_found_where_it_is_looked_for(tmp_path: Path) -> None:
    tensors = {k: v.contiguous() for k, v in file_tensors(random_model(SMALL["sd1"])).items()}
    key = "first_stage_model.quant_conv.bias"
    tensors[key][3] = float("nan")
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    assert inspect(path).not_finite is None
    report = inspect(path, check_values=True)
    assert report.not_finite == (key,)
    assert f"1 tensor ({key}) with NaN or infinity" in str(report)


def test_what_the_file_says_against_what_is_proved(tmp_path: Path, published: dict[str, Any]) -> None:
    """SD2's tensors, and metadata of three kinds."""
    listed = published["stable-diffusion-2/v2-inference-v"]["tensors"]
    header: dict[str, Any] = {}
    end = 0
    for key, shape in listed.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size

    def report(metadata: dict[str, str]) -> Report:
        encoded = json.dumps({"__metadata__": metadata, **header}).encode()
        path = tmp_path / "sd2.safetensors"
        with path.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + end)
        return inspect(path)

    bare = report({})
    assert (bare.sure, bare.prediction, bare.presets) == ("fits", None, ("sd2-base", "sd2-v"))
    assert "prediction='eps' or prediction='v'" in str(bare.load)
    told = report({"modelspec.prediction_type": "v"})
    assert (told.sure, told.prediction, told.presets) == ("proved", "v", ("sd2-v",))
    assert "the metadata modelspec.prediction_type: prediction 'v'" in told.claims
    wrong = report({"ldm_core.config": json.dumps(PRESETS["sd1"].to_dict())})
    assert wrong.load is None
    assert any("contradicts the file's own metadata" in sentence for sentence in wrong.suspicious)
