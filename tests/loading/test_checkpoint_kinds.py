"""Every kind of file that people have of a model loads to the same weights, or is refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.reference import random_model
from support.weights import same_weights
from support.wild_files import (
    OPEN_CLIP,
    TEXT,
    UNET,
    VAE,
    damaged_position_ids,
    lightning_file,
    mixed_types,
    only,
    renamed,
    trained,
)
from support.wild_models import original, write
from torch import Tensor

import ldm_core
from ldm_core import build
from ldm_core.checkpoint import CheckpointError, inspect
from ldm_core.conditioners import ClassLabels, Unconditional
from ldm_core.config import SD1, SD2_BASE, SD2_V, LatentDiffusionConfig
from ldm_core.loading.prediction import decide_prediction, noise_similarity, predicted
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion
from ldm_core.protocols import Conditioner

# How prefixes differ in the wild, for a file of a whole model. Text encoders: see below.
WHOLE = {
    "original": [],
    "bare U-Net": [(UNET, "diffusion_model.")],
    "U-Net without a prefix": [(UNET, "")],
    "VAE without a prefix": [(VAE, "")],
    "VAE without a prefix, repackaged": [(VAE, ""), (UNET, "diffusion_model."), (TEXT, "te.text_model.")],
    "text encoder without a prefix": [(TEXT, "")],
    "unet. and vae.": [(UNET, "unet."), (VAE, "vae.")],
    "SDXL's text prefix": [(TEXT, "conditioner.embedders.0.transformer.text_model.")],
    "SDXL's without transformer": [(TEXT, "conditioner.embedders.0.text_model.")],
    "no text_model": [(TEXT, "cond_stage_model.transformer.")],
    "te": [(TEXT, "te.text_model.")],
    "te, no text_model": [(TEXT, "te.")],
    "clip_l": [(TEXT, "clip_l.transformer.text_model.")],
    "clip_l, short": [(TEXT, "clip_l.text_model.")],
    "clip_l within": [(TEXT, "cond_stage_model.clip_l.transformer.text_model.")],
    "text_encoder": [(TEXT, "text_encoder.text_model."), (UNET, "unet."), (VAE, "vae.")],
}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("prefixes", WHOLE.values(), ids=WHOLE.keys())
def test_prefixes_in_the_wild(prefixes: list[tuple[str, str]], sd1: LatentDiffusion, tmp_path: Path) -> None:
    path = write(renamed(original(sd1), *prefixes), tmp_path / "m.safetensors")
    assert same_weights(ldm_core.load(path, config=sd1.config), sd1)
    report = inspect(path)
    assert report.missing == ()
    assert report.unknown == ()


def test_parts_without_prefixes_are_told_apart(sd1: LatentDiffusion, tmp_path: Path) -> None:
    """By the names that each network has; what neither has is still refused."""
    for prefixes in ([UNET, VAE], [VAE, TEXT], [UNET, VAE, TEXT]):
        tensors = renamed(original(sd1), *((prefix, "") for prefix in prefixes))
        path = write(tensors, tmp_path / "m.safetensors")
        assert same_weights(ldm_core.load(path, config=sd1.config), sd1)
        report = inspect(path)
        assert (report.missing, report.unknown) == ((), ())
        assert ldm_core.load_part(path, "autoencoder").config.ch == 32  # type: ignore[union-attr]
        write({**tensors, "strange.weight": torch.ones(1)}, path)
        with pytest.raises(CheckpointError, match=r"not used by the model:\n    strange\.weight"):
            ldm_core.load(path, config=sd1.config)


@pytest.mark.parametrize("prefix", ["conditioner.embedders.0.model.", "te.", "text_encoder."])
def test_prefixes_of_open_clip(prefix: str, sd2: LatentDiffusion, tmp_path: Path) -> None:
    path = write(renamed(original(sd2), (OPEN_CLIP, prefix)), tmp_path / "m.safetensors")
    assert same_weights(ldm_core.load(path, config=sd2.config), sd2)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_lightning_checkpoint(legacy: bool, nested: bool, sd1: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    lightning_file(trained(original(sd1)), path, legacy=legacy, nested=nested)
    assert same_weights(ldm_core.load(path, config=sd1.config), sd1)
    report = inspect(path)
    assert report.step == 470000
    assert report.ema
    assert report.unknown == ()
    assert any("ModelCheckpoint" in name for name in report.foreign)
    assert report.schedule == "1000 betas from 0.00085 to 0.012, scaled_linear"
    assert any("would run" in sentence for sentence in report.suspicious)


def test_averaged_weights_come_where_they_are_asked_for(sd1: LatentDiffusion, tmp_path: Path) -> None:
    path = write(trained(original(sd1)), tmp_path / "full.ckpt")
    model = ldm_core.load(path, config=sd1.config, ema=True)
    for (name, ours), theirs in zip(model.unet.state_dict().items(), sd1.unet.state_dict().values()):
        assert torch.equal(ours, theirs + 1), name
    assert torch.equal(model.autoencoder.quant_conv.weight, sd1.autoencoder.quant_conv.weight)


@pytest.mark.parametrize("kind", ["counters", "pruned"])
def test_files_without_averages_say_so(kind: str, sd1: LatentDiffusion, tmp_path: Path) -> None:
    """ "emaonly" files hold the averages under the trained weights' names: nothing is left to ask for."""
    tensors = original(sd1) if kind == "pruned" else trained(original(sd1), ema="counters")
    path = write(tensors, tmp_path / "x.ckpt")
    assert not inspect(path).ema
    assert same_weights(ldm_core.load(path, config=sd1.config), sd1)
    with pytest.raises(CheckpointError, match="contains no averaged"):
        ldm_core.load(path, config=sd1.config, ema=True)


def test_averages_of_a_part_only_are_an_error(sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = trained(original(sd1))
    del tensors["model_ema.diffusion_modelconv_in0weight".replace("conv_in0", "input_blocks00")]
    path = write(tensors, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"no averaged weights for input_blocks\.0\.0\.weight"):
        ldm_core.load(path, config=sd1.config, ema=True)


def test_damaged_position_ids_are_dropped_and_told(sd1: LatentDiffusion, tmp_path: Path) -> None:
    path = write(damaged_position_ids(original(sd1)), tmp_path / "x.safetensors")
    assert same_weights(ldm_core.load(path, config=sd1.config), sd1)
    assert any("position_ids is damaged (bfloat16)" in sentence for sentence in inspect(path).suspicious)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_stored_types(dtype: torch.dtype, sd1: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ldm_core.checkpoint.save(sd1, path, dtype=dtype)
    model = ldm_core.load(path)
    for part, module in sd1.modules.items():
        for (name, ours), theirs in zip(
            model.modules[part].state_dict().items(), module.state_dict().values()
        ):
            assert torch.equal(ours, theirs.to(dtype).float()), name
    ids = ldm_core.checkpoint.read(path).tensors[f"{TEXT}embeddings.position_ids"]
    assert ids.dtype == torch.int64


def test_mixed_types(sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = mixed_types(original(sd1))
    path = write(tensors, tmp_path / "x.safetensors")
    model = ldm_core.load(path, config=sd1.config)
    assert model.dtype == torch.float32
    loaded = file_tensors(model)
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in tensors.items())


OTHERS = {
    "conditioner.embedders.1.model.ln_final.weight": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.0.x": "Stable Diffusion 3",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": "LoRA",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": "LoRA",
    "unet.mid_block.attentions.0.proj_in.lora_A.default.weight": "LoRA",
    "lora_unet_mid_block_attentions_0_proj_in.diff": "LoRA",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "adapter for Stable Diffusion XL",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "adapter for Stable Diffusion 3 or Flux",
    "lora_unet_mid_block_attentions_0_proj_in.dora_scale": "DoRA",
    "lora_unet_mid_block_attentions_0_proj_in.oft_blocks": "adapter of a kind that is not supported",
    "emb_params": "textual inversion",
    "params_ema.conv_first.weight": "upscaler",
}


@pytest.mark.parametrize("key", OTHERS)
def test_other_families_are_named(key: str, tmp_path: Path) -> None:
    path = write({key: torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=OTHERS[key]):
        ldm_core.load(path)
    report = inspect(path)
    assert OTHERS[key] in report.family + report.why
    assert report.unknown == ()


def test_sd2_files_without_what_is_never_used(sd2: LatentDiffusion, tmp_path: Path) -> None:
    """Neither the last block nor the projection: the same numbers come out."""
    unused = (
        f"{OPEN_CLIP}transformer.resblocks.2.",
        f"{OPEN_CLIP}text_projection",
        f"{OPEN_CLIP}logit_scale",
    )
    tensors = {k: v for k, v in original(sd2).items() if not k.startswith(unused)}
    path = write(tensors, tmp_path / "pruned.safetensors")
    loaded = ldm_core.load(path, config=sd2.config)
    assert (loaded.config.text_encoder.layers, loaded.config.text_encoder.clip_skip) == (2, 0)
    tokens = loaded.tokenizer(["a cat"])
    assert torch.equal(loaded.text_encoder(tokens), sd2.text_encoder(tokens))


def test_attention_names_that_converters_left(sd1: LatentDiffusion, tmp_path: Path) -> None:
    """`attn_1.to_q` instead of `attn_1.q`, as matrices."""
    tensors = {}
    for key, value in original(sd1).items():
        names = {
            ".q.": ".to_q.",
            ".k.": ".to_k.",
            ".v.": ".to_v.",
            ".proj_out.": ".to_out.0.",
            ".norm.": ".group_norm.",
        }
        if ".attn_1." in key:
            for old, new in names.items():
                key = key.replace(old, new)
            value = value.flatten(1) if value.ndim == 4 else value
        tensors[key] = value
    path = write(tensors, tmp_path / "x.safetensors")
    assert same_weights(ldm_core.load(path, config=sd1.config), sd1)


def test_a_trained_u_nets_answer_tells_what_it_predicts(bundled: LatentDiffusion) -> None:
    """The bundled model predicts v; the same network with its answer turned into eps predicts eps."""
    assert decide_prediction(noise_similarity(bundled)) == "v"

    alphas = bundled.noise_schedule.alphas_cumprod

    class AsEps(torch.nn.Module):
        def forward(self, x: Tensor, t: int, context: Tensor) -> Tensor:
            a, s = float(alphas[t]) ** 0.5, (1 - float(alphas[t])) ** 0.5
            return a * bundled.unet(x, t, context) + s * x

    similarity = noise_similarity(replace(bundled, unet=AsEps()))
    assert similarity > 0.95
    assert decide_prediction(similarity) == "eps"
    assert decide_prediction(0.5) is None


@pytest.mark.parametrize("conditioner", [Unconditional(), ClassLabels(10, unconditional=9)], ids=repr)
def test_a_u_net_that_reads_no_text_tells_what_it_predicts(
    bundled: LatentDiffusion, conditioner: Conditioner
) -> None:
    def eps(x: Tensor, t: int, context: None, y: Tensor | None = None) -> Tensor:
        assert context is None
        assert (None if y is None else y.tolist()) == (conditioner.unconditional and [9])
        return x

    assert noise_similarity(replace(bundled, conditioner=conditioner, unet=eps)) == pytest.approx(1)


def test_a_u_net_without_unconditional_inputs_is_not_evaluated(bundled: LatentDiffusion) -> None:
    model = replace(bundled, conditioner=ClassLabels(10))
    with pytest.raises(CheckpointError, match=r"evaluated here \(expected inputs .*: pass prediction="):
        predicted(model, "file", ["eps", "v"])


def test_a_file_that_fits_both_is_asked_or_told(
    sd2: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps, v = replace(sd2.config, prediction="eps"), replace(sd2.config, prediction="v")
    from ldm_core.loading import evidence

    presets: dict[str, LatentDiffusionConfig] = {"sd2-base": eps, "sd2-v": v}
    monkeypatch.setattr(evidence, "PRESETS", presets)
    monkeypatch.setattr(evidence, "preset", presets.__getitem__)
    path = write(original(sd2), tmp_path / "bare.safetensors")
    with pytest.warns(UserWarning, match="is taken to predict v; pass prediction='v' to skip this check"):
        assert ldm_core.load(path).config == v
    assert ldm_core.load(path, prediction="eps").config == eps
    assert ldm_core.load(path, config="sd2-v").config == v
    monkeypatch.setattr("ldm_core.loading.prediction.IS_V", 0.0)
    with pytest.raises(
        CheckpointError, match=r"is inconclusive \(correlation .*\): pass prediction='eps' or"
    ):
        ldm_core.load(path)


def test_presets_of_the_two_sd2_models_differ_in_what_they_predict() -> None:
    assert replace(SD2_BASE, prediction="v", image_size=768) == SD2_V
    assert SD1.prediction == "eps"


def test_betas_of_another_schedule_are_refused(sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = {**trained(original(sd1)), "betas": torch.linspace(1e-4, 2e-2, 1000)}
    path = write(tensors, tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError, match=r"1000 betas from 0\.0001 to 0\.02 according to the tensor betas"
    ):
        ldm_core.load(path, config=sd1.config)


def test_two_spellings_of_one_tensor_are_not_chosen_between(sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = original(sd1)
    key = f"{VAE}decoder.mid.attn_1.q.weight"
    tensors[key.replace(".q.", ".to_q.")] = tensors[key] + 7
    path = write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"not used by the model:\n    .*attn_1\.to_q\.weight"):
        ldm_core.load(path, config=sd1.config)


def test_a_file_says_that_it_ends_in_pure_noise(sd1: LatentDiffusion, tmp_path: Path) -> None:
    """By an empty tensor, as programs mark models that were trained so; alone or as another file's part."""
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    marked = write({**original(sd1), **marks}, tmp_path / "marked.safetensors")
    plain = write(original(sd1), tmp_path / "plain.safetensors")
    config = replace(sd1.config, prediction="v")
    for model in (ldm_core.load(marked, config=config), ldm_core.load(plain, config=config, unet=marked)):
        assert model.config.noise_schedule == replace(config.noise_schedule, zero_terminal_snr=True)
        assert model.noise_schedule.alphas_cumprod[-1] == 0
    assert not ldm_core.load(plain, config=config).config.noise_schedule.zero_terminal_snr
    assert "ztsnr" not in str(inspect(marked).suspicious)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("statement", ["v", "V", "v_prediction", "v-prediction"])
def test_what_the_file_says_wins_or_is_contradicted(
    statement: str, sd1: LatentDiffusion, tmp_path: Path
) -> None:
    """A U-Net that says that it predicts v, alone or beside a model that predicts eps."""
    whole = write(original(sd1), tmp_path / "whole.safetensors")
    unet = tmp_path / "unet.safetensors"
    tensors = {key: value.clone() for key, value in only(original(sd1), UNET).items()}
    save_file(tensors, unet, {"modelspec.prediction_type": statement})
    assert ldm_core.load(whole, config=sd1.config, unet=unet).config.prediction == "v"
    save_file(
        {k: v.clone() for k, v in original(sd1).items()}, whole, {"modelspec.prediction_type": statement}
    )
    (tmp_path / "whole.yaml").write_text("model: 3")
    with pytest.raises(CheckpointError, match=r"whole\.yaml: no section model"):
        ldm_core.load(whole)
    assert ldm_core.load(whole, config=sd1.config).config.prediction == "eps", (
        "what is given in full is meant"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers(dtype: torch.dtype, sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = original(sd1)
    tensors[f"{UNET}out.2.weight"] = tensors[f"{UNET}out.2.weight"].to(dtype)
    path = write(tensors, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"out\.2\.weight: expected real numbers, got torch\."):
        ldm_core.load(path, config=sd1.config)
    with pytest.raises(ValueError, match="must be a floating-point type"):
        ldm_core.load(path, config=sd1.config, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="must be a floating-point type"):
        ldm_core.checkpoint.save(sd1, tmp_path / "y.ckpt", dtype=torch.int8)


def test_a_model_that_is_not_of_its_configuration_is_not_saved(sd1: LatentDiffusion, tmp_path: Path) -> None:
    wide = random_model(replace(sd1.config, autoencoder=replace(sd1.config.autoencoder, ch=64)))
    for odd, message in (
        (
            replace(sd1, autoencoder=wide.autoencoder),
            r"autoencoder.encoder.conv_in.weight: expected \(32, 3, 3, 3\), got \(64, ",
        ),
        (replace(sd1, unet=lambda x, t, context: x), "the model's unet has no weights to save"),
        (sd1.__class__(**{**sd1.__dict__, **build(sd1.config, "meta").modules}), "on the meta device"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ldm_core.checkpoint.save(odd, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through_and_permissions_stay(sd1: LatentDiffusion, tmp_path: Path) -> None:
    target, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    target.write_bytes(b"")
    target.chmod(0o600)
    link.symlink_to(target)
    ldm_core.checkpoint.save(sd1, link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert same_weights(ldm_core.load(target), sd1)
