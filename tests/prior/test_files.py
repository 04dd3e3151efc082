"""A prior's files: both layouts one to one and back, folders with their text encoder, and bad files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer as DiffusersPrior
from safetensors.torch import save_file
from support.priors import (
    SMALL,
    WIDTH,
    diffusers_arguments,
    diffusers_prior,
    random_prior,
    small_clip,
    small_prior,
    text_settings,
    text_tensors,
)
from support.small_models import small_model
from torch import Tensor

import ldm_core
from ldm_core.checkpoint.key_map import KeyMap, to_file, to_parameters
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.nn.placement import blank
from ldm_core.prior import KARLO, Prior, PriorTransformer
from ldm_core.prior.names import diffusers_map, karlo_map
from ldm_core.prior.settings import prior_config, prior_schedule, prior_settings
from ldm_core.prior.shapes import diffusers_config, karlo_config

BARE = replace(SMALL, statistics=False)
SCHEDULER = {
    "_class_name": "UnCLIPScheduler",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}


def karlo_shapes(layers: int, width: int, dim: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """The tensors of Karlo's file, written out."""
    shapes: dict[str, tuple[int, ...]] = {
        "prd_emb": (1, 1, width),
        "positional_embedding": (1, tokens, width),
    }
    linear = {"clip_img_proj": (width, dim), "text_emb_proj": (width, dim), "text_enc_proj": (width, dim)}
    linear |= {"time_embed.0": (width, width), "time_embed.2": (width, width), "out_proj": (dim, width)}
    norms = ["final_ln"]
    for k in range(layers):
        block = f"transformer.resblocks.{k}"
        linear |= {f"{block}.attn.c_qkv": (3 * width, width), f"{block}.attn.c_proj": (width, width)}
        linear |= {f"{block}.mlp.c_fc": (4 * width, width), f"{block}.mlp.c_proj": (width, 4 * width)}
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    return shapes | {f"{name}.{tensor}": (width,) for name in norms for tensor in ("weight", "bias")}


def one_to_one(key_map: KeyMap, network: torch.nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """The map's file has exactly these tensors, and holds every parameter once."""
    state = network.state_dict()
    file = to_file(key_map, state)
    assert {name: tuple(tensor.shape) for name, tensor in file.items()} == shapes
    named = [name for entry in key_map.values() for name in entry.parameters]
    assert len(named) == len(set(named))
    again = to_parameters(key_map, file, {k: v.shape for k, v in state.items()}, source="file")
    assert again.keys() == set(named)
    for name, value in again.items():
        assert value.is_meta or torch.equal(value, state[name])


@pytest.mark.parametrize("published", [False, True])
def test_every_tensor_has_one_name_and_back(published: bool) -> None:
    config = KARLO if published else SMALL
    with torch.device("meta"):
        theirs = DiffusersPrior(**diffusers_arguments(config)).state_dict()
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    network = blank(PriorTransformer, config) if published else random_prior()
    one_to_one(diffusers_map(config), network, shapes)
    config = replace(config, statistics=False)
    network = blank(PriorTransformer, config) if published else random_prior(config)
    tokens = config.context_length + 4
    karlo = karlo_shapes(config.layers, config.width, config.embedding_dim, tokens)
    one_to_one(karlo_map(config), network, karlo)
    assert karlo_config(karlo) == replace(config, heads=1)
    assert diffusers_config(shapes) == replace(config, heads=1, statistics=True)


def karlo_tensors(network: PriorTransformer) -> dict[str, Tensor]:
    """Karlo's file of a network, from diffusers' tensors: q, k and v follow each other head by head."""
    theirs, config = diffusers_prior(network).state_dict(), network.config
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "proj_in": "clip_img_proj",
        "embedding_proj": "text_emb_proj",
        "encoder_hidden_states_proj": "text_enc_proj",
        "norm_out": "final_ln",
        "proj_to_clip_embeddings": "out_proj",
    }
    tensors = {"positional_embedding": theirs["positional_embedding"], "prd_emb": theirs["prd_embedding"]}
    for k in range(config.layers):
        ours, block = f"transformer_blocks.{k}", f"transformer.resblocks.{k}"
        names |= {f"{ours}.norm1": f"{block}.ln_1", f"{ours}.norm3": f"{block}.ln_2"}
        names |= {f"{ours}.ff.net.0.proj": f"{block}.mlp.c_fc", f"{ours}.ff.net.2": f"{block}.mlp.c_proj"}
        names |= {f"{ours}.attn1.to_out.0": f"{block}.attn.c_proj"}
        size = config.width // config.heads
        for tensor in ("weight", "bias"):
            rows = [
                theirs[f"{ours}.attn1.to_{x}.{tensor}"][head * size : (head + 1) * size]
                for head in range(config.heads)
                for x in "qkv"
            ]
            tensors[f"{block}.attn.c_qkv.{tensor}"] = torch.cat(rows)
    for theirs_name, name in names.items():
        for tensor in ("weight", "bias"):
            tensors[f"{name}.{tensor}"] = theirs[f"{theirs_name}.{tensor}"]
    return {f"model.{name}": value.clone() for name, value in tensors.items()}


def same(a: PriorTransformer, b: PriorTransformer) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return (
        a.config == b.config
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[k], theirs[k]) for k in ours)
    )


@pytest.mark.parametrize("pair", [tuple, list])
def test_karlo_s_files(pair: type, tmp_path: Path) -> None:
    network = random_prior()
    assert network.mean is not None
    assert network.std is not None
    path, stats = tmp_path / "prior.ckpt", tmp_path / "ViT-L-14_stats.th"
    torch.save({"state_dict": karlo_tensors(network), "global_step": 1000000}, path)
    torch.save(pair([network.mean[0].clone(), network.std[0].clone()]), stats)
    clip = small_clip()
    prior = ldm_core.load_prior(path, clip=clip, statistics=stats, config=BARE)
    assert same(prior.network, network)
    assert (prior.text_encoder, prior.tokenizer) == (clip.text_encoder, clip.tokenizer)
    given = ldm_core.load_prior(path, clip=clip, statistics=(network.mean[0], network.std), config=BARE)
    assert same(given.network, network)
    bare = ldm_core.load_part(path, "prior", config=BARE)
    ldm_core.save(bare, tmp_path / "again.ckpt")  # in the same names
    assert ldm_core.checkpoint.read(tmp_path / "again.ckpt").tensors.keys() == {
        name.removeprefix("model.") for name in karlo_tensors(network)
    }
    with pytest.raises(CheckpointError, match=r"lacks mean and std .*ViT-L-14_stats.th: pass statistics="):
        ldm_core.load_prior(path, clip=clip, config=BARE)
    with pytest.raises(CheckpointError, match="its prior matches no known model; pass config="):
        ldm_core.load_prior(path, clip=clip, statistics=stats)


def test_the_file_of_save(tmp_path: Path) -> None:
    network, clip = random_prior(), small_clip()
    ldm_core.save(network, tmp_path / "prior.safetensors")
    clip.save(tmp_path / "clip.safetensors")
    prior = ldm_core.load_prior(tmp_path / "prior.safetensors", clip=tmp_path / "clip.safetensors")
    assert same(prior.network, network)
    assert torch.equal(prior("a cat", seed=1), replace(small_prior(), network=network)("a cat", seed=1))
    report = ldm_core.inspect(tmp_path / "prior.safetensors")
    assert report.load == f"ldm_core.load_prior({str(tmp_path / 'prior.safetensors')!r}, clip=clip)"
    assert report.unknown == report.missing == ()
    with pytest.raises(CheckpointError, match=r"contains no latent diffusion model.*load_prior"):
        ldm_core.load(tmp_path / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"prior\.safetensors contains no text encoder: pass clip="):
        ldm_core.load_prior(tmp_path / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"clip\.safetensors contains no prior"):
        ldm_core.load_prior(tmp_path / "clip.safetensors", clip=clip)
    with pytest.raises(
        CheckpointError, match=r"prior\.safetensors: expected the text encoder of the prior's CLIP"
    ):
        ldm_core.load_prior(tmp_path / "prior.safetensors", clip=small_clip(24))
    with pytest.raises(ValueError, match="clip must be a CLIP or its file, not int"):
        ldm_core.load_prior(tmp_path / "prior.safetensors", clip=3)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such file"):
        ldm_core.load_prior(tmp_path / "none.ckpt", clip=clip)
    zeros = torch.zeros(WIDTH)
    for statistics in ((zeros, zeros), (zeros,), (zeros, zeros[1:] + 1), (zeros / 0, zeros + 1), (0, 1)):
        with pytest.raises(CheckpointError, match="statistics: expected mean and std, finite vectors of 16"):
            ldm_core.load_prior(tmp_path / "prior.safetensors", clip=clip, statistics=statistics)  # type: ignore[arg-type]


def pipeline(folder: Path, prior: Prior, kind: str, text: str) -> Path:
    """A pipeline's folder with what `load_prior` reads, written by diffusers and in transformers' names."""
    clip, written = small_clip(), folder / "model_index.json"
    index = json.loads(written.read_text()) if written.exists() else {}
    diffusers_prior(prior.network).save_pretrained(folder / "prior")
    for name, value in (
        ("model_index.json", {**index, "_class_name": kind}),
        ("prior_scheduler/scheduler_config.json", {**SCHEDULER, "clip_sample_range": 7.0}),
        (f"{text}/config.json", text_settings(clip)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    save_file(text_tensors(clip), folder / text / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "text"),
    [("UnCLIPPipeline", "text_encoder"), ("StableUnCLIPPipeline", "prior_text_encoder")],
)
def test_folders_of_diffusers(kind: str, text: str, tmp_path: Path) -> None:
    prior = small_prior(clip_range=7.0)
    folder = pipeline(tmp_path / "karlo", prior, kind, text)
    loaded = ldm_core.load_prior(folder)
    assert same(loaded.network, prior.network)
    assert loaded.clip_range == 7.0
    assert torch.equal(loaded("a cat", seed=1), prior("a cat", seed=1))
    assert torch.equal(loaded.embed_text(["a dog"]), prior.embed_text(["a dog"]))
    alone = ldm_core.load_prior(folder / "prior", clip=small_clip())
    assert same(alone.network, prior.network)
    (folder / text).rename(folder / "text_encoder_2")
    with pytest.raises(CheckpointError, match="prior contains no text encoder: pass clip="):
        ldm_core.load_prior(folder)


def test_a_folder_of_stable_unclip_has_a_model_and_a_prior(tmp_path: Path) -> None:
    model, prior, folder = small_model("unclip"), small_prior(clip_range=7.0, steps=2), tmp_path / "unclip"
    ldm_core.save(model, folder, layout="diffusers")
    pipeline(folder, prior, "StableUnCLIPPipeline", "prior_text_encoder")
    options: dict[str, Any] = {"steps": 1, "seed": 1, "output": "latent"}
    found = ldm_core.UnCLIP(
        ldm_core.Sampler(ldm_core.load(folder)), replace(ldm_core.load_prior(folder), steps=2)
    )
    expected = ldm_core.UnCLIP(ldm_core.Sampler(model), prior)
    assert torch.equal(found.txt2img("a cat", **options), expected.txt2img("a cat", **options))


def test_bad_folders(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "karlo", small_prior(), "UnCLIPPipeline", "text_encoder")
    tensors = text_tensors(small_clip())
    projection = tensors.pop("text_projection.weight")
    for bad in (None, projection[:, 1:].contiguous(), projection / 0):
        more = {} if bad is None else {"text_projection.weight": bad}
        save_file({**tensors, **more}, folder / "text_encoder" / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"text_encoder: .*text_projection\.weight"):
            ldm_core.load_prior(folder)
    settings = json.loads((folder / "prior" / "config.json").read_text())
    for name, value in (
        ("num_layers", 3),
        ("added_emb_type", None),
        ("clip_embed_dim", 3),
        ("embedding_dim", "x"),
    ):
        (folder / "prior" / "config.json").write_text(json.dumps({**settings, name: value}))
        with pytest.raises(CheckpointError):
            ldm_core.load_prior(folder, clip=small_clip())


def test_settings() -> None:
    assert prior_config(prior_settings(SMALL)) == SMALL
    assert prior_config({}) == KARLO  # diffusers' defaults are Karlo's
    theirs = dict(DiffusersPrior(**diffusers_arguments(SMALL)).config)
    assert {name: theirs[name] for name in prior_settings(SMALL) if name != "_class_name"} == {
        name: value for name, value in prior_settings(SMALL).items() if name != "_class_name"
    }
    with pytest.raises(ConfigError, match="have 8 and 16 numbers"):
        prior_settings(replace(SMALL, text_width=8))
    assert prior_schedule(SCHEDULER).clip_range == 5.0
    bad: list[dict[str, Any]] = [
        {"prediction_type": "epsilon"},
        {"beta_schedule": "linear"},
        {"clip_sample": False},
        {"clip_sample_range": 0},
        {"num_train_timesteps": "x"},
    ]
    for change in bad:
        with pytest.raises(CheckpointError, match=r"prior_scheduler/scheduler_config\.json"):
            prior_schedule({**SCHEDULER, **change})
