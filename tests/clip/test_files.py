"""CLIP's files: every set of names, folders, TorchScript archives, and what is unclear or damaged."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from support.clip_checkpoints import CONFIG, EXACT, Tensors, json_file, write
from support.clip_reference import (
    PROMPTS,
    SMALL,
    open_clip_arguments,
    open_clip_model,
    openai_tensors,
    random_clip,
    transformers_clip,
    transformers_tensors,
)

import ldm_core
from ldm_core.checkpoint import Checkpoint, CheckpointError
from ldm_core.checkpoint.pickle_reader import PickleReader, PickleStream
from ldm_core.checkpoint.state_dict import split_script
from ldm_core.checkpoint.work_budget import Budget
from ldm_core.clip import CLIP, PRESETS, files


def same_bits(a: CLIP, b: CLIP) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- names ---


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("tensors_of", [openai_tensors, transformers_tensors])
def test_every_set_of_names_loads(clip: CLIP, tensors_of: Any, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"clip{ending}", tensors_of(clip))
    assert same_bits(CLIP.load(path, config=CONFIG), clip)


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_a_trainers_checkpoint_loads(clip: CLIP, prefix: str, tmp_path: Path) -> None:
    """As open_clip writes them: the names prefixed, in a `state_dict`, the optimizer beside it."""
    tensors = {prefix + key: value for key, value in openai_tensors(clip).items()}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
    assert same_bits(CLIP.load(tmp_path / "epoch_3.pt", config=CONFIG), clip)


def test_open_clips_own_state_dict_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = open_clip_model(EXACT)
    path = write(tmp_path / "open_clip.pt", theirs.state_dict())
    ours = CLIP.load(path, config=EXACT)
    tokens = torch.randint(0, 299, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours.encode_text(tokens), theirs.encode_text(tokens), atol=1e-5)


def test_transformers_own_folder_loads(clip: CLIP, tmp_path: Path) -> None:
    transformers_clip(clip).save_pretrained(tmp_path)
    loaded = CLIP.load(tmp_path)
    assert same_bits(loaded, clip)
    assert loaded.config == CONFIG
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_center_crop": True}
    json_file(tmp_path / "preprocessor_config.json", pixels)
    other = CLIP.load(tmp_path).config.image_encoder
    assert (other.mean, other.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    json_file(tmp_path / "preprocessor_config.json", {"image_mean": "abc"})
    with pytest.raises(CheckpointError, match="mean must be a tuple of three numbers"):
        CLIP.load(tmp_path)
    json_file(tmp_path / "preprocessor_config.json", {"do_center_crop": False})
    with pytest.raises(CheckpointError, match="do_center_crop is False"):
        CLIP.load(tmp_path)


def test_open_clips_own_folder_loads(tmp_path: Path) -> None:
    exact = random_clip(EXACT)
    arguments = open_clip_arguments(EXACT)
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    folder_config = {"model_cfg": arguments, "preprocess_cfg": pixels}
    json_file(tmp_path / "open_clip_config.json", folder_config)
    write(tmp_path / "open_clip_model.safetensors", openai_tensors(exact))
    loaded = CLIP.load(tmp_path)
    assert same_bits(loaded, exact)
    assert loaded.config.text_encoder == EXACT.text_encoder
    assert loaded.config.image_encoder == replace(EXACT.image_encoder, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert CLIP.load(tmp_path / "open_clip_model.safetensors").config == loaded.config
    for place, name, value in (
        ("vision_cfg", "timm_model_name", "vit"),
        ("text_cfg", "hf_model_name", "roberta"),
        ("vision_cfg", "mlp_ratio", 4.9),
        ("text_cfg", "pool_type", "last"),
    ):
        changed = {**arguments, place: {**arguments[place], name: value}}
        json_file(tmp_path / "open_clip_config.json", {"model_cfg": changed})
        with pytest.raises(CheckpointError, match=rf"open_clip_config.json: {name} is '?{value}"):
            CLIP.load(tmp_path)
    json_file(
        tmp_path / "open_clip_config.json",
        {"model_cfg": arguments, "preprocess_cfg": {"resize_mode": "squash"}},
    )
    with pytest.raises(CheckpointError, match="resize_mode is 'squash'; only 'shortest'"):
        CLIP.load(tmp_path)
    json_file(tmp_path / "open_clip_config.json", {"model_cfg": {}})
    with pytest.raises(CheckpointError, match="has no setting 'vision_cfg'"):
        CLIP.load(tmp_path)


# --- OpenAI's archives ---


class Holder(torch.nn.Module):
    """A tree of modules with the names of a state dict, which is all that an archive's tree says."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        children: dict[str, Tensors] = {}
        for key, value in tensors.items():
            name, _, rest = key.partition(".")
            if rest:
                children.setdefault(name, {})[rest] = value
            elif value.is_floating_point():
                self.register_parameter(name, torch.nn.Parameter(value.clone()))
            else:
                self.register_buffer(name, value)
        for name, inner in children.items():
            self.add_module(name, Holder(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(path: Path, tensors: Tensors) -> Path:
    torch.jit.trace(Holder(tensors), torch.ones(1)).save(str(path))
    return path


def test_a_torchscript_archive_is_read_and_not_run(clip: CLIP, tmp_path: Path) -> None:
    """As OpenAI publishes its models: half precision, the sizes beside the weights."""
    half = {key: value.half() for key, value in openai_tensors(clip).items()}
    half["logit_scale"] = half["logit_scale"].float()
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 300}
    tensors = half | {key: torch.tensor(value) for key, value in sizes.items()}
    path = archive(tmp_path / "ViT-B-32.pt", tensors)
    stored = ldm_core.checkpoint.read(path)
    assert stored.foreign == ()
    assert stored.tensors.keys() == tensors.keys()
    assert all(torch.equal(stored.tensors[key], tensors[key]) for key in tensors)
    loaded = CLIP.load(path, config=CONFIG)
    expected = {key: value.half().float() for key, value in openai_tensors(clip).items()}
    ours = openai_tensors(loaded)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_an_archive_that_holds_itself_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees that no program writes: a module in itself, and doubled at each of 40 levels."""
    module = ModuleType("__torch__")
    kind = module.Module = type("Module", (), {"__module__": "__torch__"})
    monkeypatch.setitem(sys.modules, "__torch__", module)
    top = inner = kind()
    for _ in range(40):
        inner.itself, inner.left = top, kind()
        inner.right = inner = inner.left
    data = pickle.dumps(top, protocol=2)
    budget = Budget(len(data))
    root = PickleReader(budget).load(PickleStream(data))
    with pytest.raises(CheckpointError, match="the TorchScript program contains no tensors"):
        split_script(root, lambda ref: torch.UntypedStorage(ref.nbytes), budget)
    with pytest.raises(CheckpointError, match="expected a TorchScript module, got <dict"):
        split_script({"a": 1}, lambda ref: torch.UntypedStorage(ref.nbytes), budget)


@pytest.mark.parametrize("name", PRESETS)
def test_openais_own_files_are_known_by_the_sizes_that_they_state(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        tensors = openai_tensors(CLIP(PRESETS[name]))
    for mark in ({}, {"input_resolution": torch.tensor(224)}):
        contents = Checkpoint(Path("clip.pt"), "torch-zip", tensors | mark, {})
        monkeypatch.setattr(files, "read", lambda path, mmap, contents=contents: contents)
        source = files.find_clip("clip.pt")
        assert source.sizes() == files.sizes_of(PRESETS[name])
        if mark and name != "open_clip/ViT-H-14":  # OpenAI published none of that size
            resolved = files.resolve_config(source, None)
            assert resolved.image_encoder.activation == resolved.text_encoder.activation == "quick_gelu"
            assert files.sizes_of(resolved) == files.sizes_of(PRESETS[name])
            assert resolved in PRESETS.values()
        else:
            with pytest.raises(
                CheckpointError, match=rf"number of heads and the activation .* config='?{name}'?"
            ):
                files.resolve_config(source, None)


# --- writing ---


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt"])
def test_what_is_saved_is_read_back_to_the_bit(clip: CLIP, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine{ending}"
    clip.save(path)
    loaded = CLIP.load(path)
    assert same_bits(loaded, clip)
    assert loaded.config == clip.config
    loaded.save(tmp_path / f"again{ending}")
    assert (tmp_path / f"again{ending}").read_bytes() == path.read_bytes()


def test_open_clip_reads_what_is_saved(tmp_path: Path) -> None:
    exact = random_clip(EXACT)
    exact.save(tmp_path / "mine.safetensors")
    theirs = open_clip_model(EXACT)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "mine.safetensors"), strict=True)
    tokens = torch.arange(77)[None]
    with torch.no_grad():
        assert torch.allclose(theirs.encode_text(tokens), exact.encode_text(tokens), atol=1e-5)


def test_without_a_map_the_file_may_change_afterwards(clip: CLIP, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.safetensors", openai_tensors(clip))
    loaded = CLIP.load(path, config=CONFIG, mmap=False)
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert same_bits(loaded, clip)


def test_types_and_devices(clip: CLIP, tmp_path: Path) -> None:
    clip.save(tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = CLIP.load(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert CLIP.load(tmp_path / "half.safetensors", dtype=torch.bfloat16).logit_scale.dtype == torch.bfloat16
    meta = CLIP.load(tmp_path / "half.safetensors", device="meta")
    assert meta.device.type == "meta"
    with pytest.raises(CheckpointError, match="on the meta device and has no values"):
        meta.save(tmp_path / "none.pt")
    for words, arguments in (
        ("expected a name that ends in .safetensors", {"path": tmp_path / "x.onnx"}),
        ("floating-point type, not torch.int8", {"path": tmp_path / "x.pt", "dtype": torch.int8}),
        ("cannot be written", {"path": tmp_path / "nowhere" / "x.pt"}),
    ):
        with pytest.raises(CheckpointError, match=words):
            clip.save(**arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors"]


def test_its_text_encoder_conditions_a_unet(tmp_path: Path) -> None:
    """A whole CLIP's file gives the text encoder of a latent diffusion model, too."""
    clip = random_clip(SMALL["open_clip/ViT-H-14"])
    clip.save(tmp_path / "clip.safetensors")
    text = replace(clip.config.text_encoder, projection_dim=40)
    model = ldm_core.config.LatentDiffusionConfig(
        text_encoder=text, unet=ldm_core.config.UNetConfig(context_dim=48)
    )
    encoder = ldm_core.load_part(tmp_path / "clip.safetensors", "text_encoder", config=model)
    tokens = clip.tokenizer(PROMPTS)
    with torch.no_grad():
        assert torch.equal(encoder(tokens), clip.text_encoder(tokens))
