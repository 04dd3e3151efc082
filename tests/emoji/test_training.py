"""The emoji model's recipe, at tiny size: from pictures to a file that draws, stopped and taken up again."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_core
from ldm_core.checkpoint import read
from ldm_core.training.logs import read_table

FOLDER = Path(__file__).parents[2] / "examples" / "train_emoji"
sys.path.append(str(FOLDER))

import emoji_models  # noqa: E402
import train as script  # noqa: E402
from emoji_pictures import EmojiPictures, Repeated, worn  # noqa: E402

SIZE = 16
TEXT = replace(emoji_models.TEXT_ENCODER, width=32, layers=1, heads=1, projection_dim=16)
MODEL = replace(
    emoji_models.MODEL,
    text_encoder=TEXT,
    unet=replace(emoji_models.MODEL.unet, model_channels=32, channel_mult=(1, 2), context_dim=32),
    autoencoder=replace(emoji_models.MODEL.autoencoder, ch_mult=(1, 1)),
    image_size=SIZE,
)
CLIP = replace(
    emoji_models.CLIP,
    image_encoder=replace(
        emoji_models.CLIP.image_encoder,
        image_size=16,
        patch_size=8,
        width=32,
        layers=1,
        heads=1,
        projection_dim=16,
    ),
    text_encoder=TEXT,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six concepts of plain colours in two styles, one picture held out."""
    root = tmp_path_factory.mktemp("emoji")
    for split, concepts in (("train", range(6)), ("held-out", range(1))):
        rows = []
        for k in concepts:
            for style in ("noto emoji", "twemoji") if split == "train" else ("flat emoji",):
                name = f"{style.replace(' ', '-')}/colour-{k}.png"
                (root / split / name).parent.mkdir(parents=True, exist_ok=True)
                colour = np.array([40 * k, 255 - 40 * k, 128], np.uint8)
                Image.fromarray(np.tile(colour, (SIZE, SIZE, 1))).save(root / split / name)
                row = {"file_name": name, "text": f"colour {k}", "concept": f"colour-{k}", "style": style}
                rows.append(row | {"common": k < 2, "names": [], "keywords": ["plain"]})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / split / "metadata.jsonl").write_text(lines)
    return root


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SIZE", SIZE)
    monkeypatch.setitem(script.MODELS, 16, MODEL)
    monkeypatch.setattr(script, "CLIP", CLIP)
    monkeypatch.setattr(script, "EVALUATOR", CLIP)
    for name in ("AUTOENCODER", "CONTRAST", "JUDGE", "DIFFUSION", "FURTHER", "DECODER"):
        changes = {"batch_size": 4, "workers": 0, "save_every": 2, "picture_every": 3, "log_every": 1}
        monkeypatch.setattr(script, name, replace(getattr(script, name), **changes))


def command(stage: str, data: Path, runs: Path, steps: int, *options: str) -> None:
    script.main([stage, str(data), str(runs), "--steps", str(steps), "--quiet", *options])


@pytest.mark.slow  # four stages of training
def test_three_commands_make_a_model_that_draws(data: Path, tmp_path: Path) -> None:
    command("autoencoder", data, tmp_path, 3)
    command("clip", data, tmp_path, 3)
    command("diffusion", data, tmp_path, 3)
    emoji = ldm_core.load(tmp_path / "emoji.safetensors")
    assert emoji.config.prediction == "v"
    assert emoji.config.text_encoder.projection_dim is None
    (image,) = ldm_core.Sampler(emoji).txt2img("colour 3", steps=2, seed=0)
    assert image.size == (SIZE, SIZE)
    assert (tmp_path / "autoencoder" / "samples").is_dir()
    assert (tmp_path / "diffusion" / "samples").is_dir()

    # The keys are the original's, and the latents that the U-Net learnt from have variance 1.
    names = read(tmp_path / "emoji.safetensors").tensors
    assert "model.diffusion_model.input_blocks.0.0.weight" in names
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in names
    means = torch.from_numpy(np.load(tmp_path / "latents.npy"))[:, 0]
    assert (means * emoji.config.latent_scale).std().item() == pytest.approx(1, abs=1e-5)

    # A finished model goes further, here with its text encoder, and its autoencoder stays.
    command("further", data, tmp_path, 2, "--text", "joint", "--device", "cpu")
    further = ldm_core.load(tmp_path / "further.safetensors")
    assert further.config == emoji.config
    for part, learns in (("unet", True), ("text_encoder", True), ("autoencoder", False)):
        before, after = emoji.modules[part].state_dict(), further.modules[part].state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) != learns

    # Then its decoder does, on the same latents.
    command("decoder", data, tmp_path, 2)
    sharper = ldm_core.load(tmp_path / "decoder.safetensors")
    for part in further.modules:
        before, after = further.modules[part].state_dict(), sharper.modules[part].state_dict()
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert changed == ({"decoder", "post_quant_conv"} if part == "autoencoder" else set())

    # The judge is another network than the model's own text encoder came from.
    ours, judge = (ldm_core.CLIP.load(tmp_path / f"{name}.safetensors") for name in ("clip", "evaluator"))
    assert not torch.equal(
        ours.text_encoder.token_embedding.weight, judge.text_encoder.token_embedding.weight
    )


@pytest.mark.slow
@pytest.mark.parametrize("joint", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_text_encoder_stays_clips_or_learns(data: Path, tmp_path: Path, joint: bool) -> None:
    for stage in ("autoencoder", "clip"):
        command(stage, data, tmp_path, 1)
    command("diffusion", data, tmp_path, 2, *["--text", "joint"] * joint)
    clip = ldm_core.CLIP.load(tmp_path / "clip.safetensors").text_encoder.state_dict()
    emoji = ldm_core.load(tmp_path / "emoji.safetensors").modules["text_encoder"].state_dict()
    assert all(torch.equal(weight, clip[name].half().float()) for name, weight in emoji.items()) != joint


def test_a_stage_goes_on_where_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("autoencoder", data, tmp_path / "whole", 4)
    save, saved = script.Trainer.save, []

    def killed(trainer: script.Trainer) -> None:
        save(trainer)
        saved.append(trainer.step)
        if trainer.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(script.Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            command("autoencoder", data, tmp_path / "cut", 4)
    assert saved == [0, 2]
    command("autoencoder", data, tmp_path / "cut", 4)
    runs = [tmp_path / kind / "autoencoder" for kind in ("whole", "cut")]
    tables = [read_table(run / "metrics.csv")[1] for run in runs]
    assert tables[0] == tables[1]
    states = [read(run / "state.safetensors").tensors for run in runs]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_stages_in_the_wrong_order_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*autoencoder"):
        command("diffusion", data, tmp_path, 1)
    with pytest.raises(SystemExit, match="the folder does not exist"):
        command("autoencoder", tmp_path / "nowhere", tmp_path, 1)


def test_both_factors_leave_as_many_numbers(data: Path, tmp_path: Path) -> None:
    for config, factor in ((emoji_models.MODEL, 16), (emoji_models.MODEL_F8, 8)):
        vae = config.autoencoder
        assert vae.downsampling == factor
        assert vae.z_channels * (vae.resolution // factor) ** 2 == 1024
        assert config.unet.in_channels == config.unet.out_channels == vae.z_channels
    command("autoencoder", data, tmp_path, 1, "--factor", "8")
    weights = read(tmp_path / "autoencoder" / "state.safetensors").tensors
    sizes = [value.shape for name, value in weights.items() if name.endswith("decoder.conv_in.weight")]
    assert sizes
    assert all(size[1] == 4 for size in sizes)


def test_options_of_other_stages_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, option, words in (
        ("diffusion", ["--model", "x.safetensors"], "--model is what `further` and `decoder`"),
        ("autoencoder", ["--text", "joint"], "--text is for `diffusion` and `further`"),
        (
            "diffusion",
            ["--device", "cuda"],
            "--device is where `further` trains; diffusion trains on the CPU",
        ),
    ):
        with pytest.raises(SystemExit):
            command(stage, data, tmp_path, 1, *option)
        assert words in capsys.readouterr().err


def test_captions_and_shares(data: Path) -> None:
    pictures = EmojiPictures(data / "train", SIZE)
    assert len(pictures) == 12
    caption = Counter(pictures.text(pictures.names.index("twemoji/colour-3.png")))
    assert set(caption) == {"colour 3", "colour 3, twemoji", "plain", "plain, twemoji"}
    assert caption["colour 3"] + caption["colour 3, twemoji"] == 3 * (
        caption["plain"] + caption["plain, twemoji"]
    )
    often = Repeated(pictures, [3 if common else 1 for common in pictures.common])
    shares = Counter(often.text(k)[0] for k in range(len(often)))
    assert shares["colour 0"] == shares["colour 1"] == 6
    assert shares["colour 2"] == shares["colour 5"] == 2
    assert torch.equal(often[2]["image"], pictures[0]["image"])
    with pytest.raises(ValueError, match="each of 12 samples"):
        Repeated(pictures, [1])


def test_worn_pictures_are_the_same_but_for_faults() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    images = torch.stack([rows, columns, rows * columns]).expand(2, 3, 32, 32)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    first = worn(images, generators(0, 1))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert 0.005 < (first - images).abs().mean() < 0.2
    assert not torch.equal(first[0], first[1])
    # A picture's faults are its own stream's, whatever batch it is in.
    torch.testing.assert_close(worn(images, generators(1, 0)), first.flip(0))


def test_a_linear_autoencoder_is_the_best_of_its_size(tmp_path: Path) -> None:
    """Of noise that is seen in training and again: what is lost is what the smaller singular values hold."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for split in ("train", "held-out"):
        (tmp_path / split).mkdir()
        for k, picture in enumerate(pixels):
            Image.fromarray(picture).save(tmp_path / split / f"{k:02}.png")
    linear_psnr = runpy.run_path(str(FOLDER.parent.parent / "docs" / "emoji.py"))["linear_psnr"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(linear_psnr.__globals__, "EVERY", 1)
        found = linear_psnr(tmp_path, 8, 8, 10)
    values = pixels.reshape(40, -1) / 255
    values = values - values.mean(axis=0)
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    errors = ((left[:, 10:] * sizes[10:] @ right[10:]) ** 2).mean(axis=1)
    assert found == pytest.approx((-10 * np.log10(errors)).mean(), abs=1e-4)
