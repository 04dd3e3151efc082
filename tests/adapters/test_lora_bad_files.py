"""LoRA files that do not fit or are damaged: refused by name, and the model is left alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.adapter_files import (
    KOHYA_UNET,
    Pair,
    Tensors,
    kohya,
    layers,
    loha,
    lokr,
    lora,
    make,
    write,
)
from support.damage import EDITS, Edit, damaged
from support.examples import examples
from torch import Tensor

from ldm_core import build
from ldm_core.adapters.lora import LoraAdapter, apply_lora
from ldm_core.checkpoint import CheckpointError
from ldm_core.config import SD1
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

# --- what is refused ---


@pytest.fixture
def small(small_sd1: Pair) -> dict[str, Tensor]:
    """A good file of a few layers."""
    adapter = make(
        {name: shape for name, shape in layers(small_sd1.unet, KOHYA_UNET).items() if "mid_block" in name}
    )
    return kohya(adapter)


MID = "lora_unet_mid_block_attentions_0_"


K = f"{MID}transformer_blocks_0_attn2_to_k"


def assert_untouched(model: LatentDiffusion) -> None:
    for module in model.modules.values():
        for layer in module.modules():
            assert not layer._forward_hooks
            assert "_fused_adapters" not in vars(layer)


def refused(model: LatentDiffusion, path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        apply_lora(model, path)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert_untouched(model)


def spoilt(tensors: Tensors, key: str, value: Tensor | None) -> Tensors:
    return {name: x for name, x in tensors.items() if name != key} | ({} if value is None else {key: value})


BAD: dict[str, tuple[str, Tensor | None, tuple[str, ...]]] = {
    "half": (f"{K}.lora_up.weight", None, (f"{K}.lora_down.weight: missing lora_up (lora_B)",)),
    "alpha alone": (
        f"{MID}transformer_blocks_0_norm1.alpha",
        torch.tensor(1.0),
        ("norm1.alpha", "without a linear"),
    ),
    "unknown": (
        f"{MID}to_x.lora_up.weight",
        torch.ones(2, 2),
        (f"{MID}to_x.lora_up.weight", "without a linear"),
    ),
    "unknown tensor": (f"{K}.lora_middle", torch.ones(2), (f"{K}.lora_middle",)),
    "non-finite": (
        f"{K}.lora_up.weight",
        torch.full((128, 4), math.nan),
        (f"{K}.lora_up.weight", "non-finite"),
    ),
    "infinite alpha": (f"{K}.alpha", torch.tensor(math.inf), (K, "alpha is inf")),
    "alpha 0": (f"{K}.alpha", torch.tensor(0.0), (K, "alpha is 0")),
    "two alphas": (f"{K}.alpha", torch.ones(2), (K, "alpha is torch.float32 (2,)")),
    "ranks": (f"{K}.lora_up.weight", torch.ones(128, 5), (K, "ranks differ: 4 of lora_down, 5 of lora_up")),
    "outputs": (f"{K}.lora_up.weight", torch.ones(96, 4), ("lora_up has shape (96, 4), expected (128, 4)",)),
    "a vector": (f"{K}.lora_up.weight", torch.ones(128), ("lora_up has shape (128,), expected a matrix",)),
    "a number": (f"{K}.lora_up.weight", torch.tensor(1.0), ("lora_up has shape (), expected a matrix",)),
    "integers": (f"{K}.lora_up.weight", torch.ones(128, 4, dtype=torch.int8), ("has dtype torch.int8",)),
    "two kinds": (
        f"{K}.diff",
        torch.ones(128, 64),
        ("diff, lora_down, lora_up do not belong to one kind of adapter",),
    ),
    "no bias": (f"{K}.diff_b", torch.ones(128), ("the layer has no bias",)),
    "bias of another size": (f"{MID}proj_in.diff_b", torch.ones(64), ("expected (128,)",)),
    "dora": (f"{K}.dora_scale", torch.ones(128, 1), ("a DoRA", "not supported", f"{K}.dora_scale")),
    "sdxl": (
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
        torch.tensor(1.0),
        ("Stable Diffusion XL",),
    ),
    "twice": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        torch.ones(4, 64),
        ("that duplicate another tensor of their layer", f"like {K}.lora_down.weight"),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_by_the_names_of_their_keys(
    small_sd1: Pair, small: Tensors, tmp_path: Path, what: str
) -> None:
    key, value, words = BAD[what]
    refused(
        small_sd1.model,
        write(tmp_path / "bad.safetensors", spoilt(small, key, value)),
        "bad.safetensors",
        *words,
    )


def test_rank_0_is_refused(small_sd1: Pair, tmp_path: Path) -> None:
    tensors = {f"{K}.lora_down.weight": torch.ones(0, 64), f"{K}.lora_up.weight": torch.ones(128, 0)}
    refused(small_sd1.model, write(tmp_path / "x.safetensors", tensors), "the rank is 0")


def test_several_problems_are_told_at_once(small_sd1: Pair, small: Tensors, tmp_path: Path) -> None:
    bad = spoilt(small, f"{K}.lora_up.weight", None) | {"x.y": torch.ones(1)}
    bad[f"{MID}proj_in.lora_up.weight"] = torch.full((128, 4), math.inf)
    path = write(tmp_path / "x.safetensors", bad)
    refused(small_sd1.model, path, "missing lora_up", "1 tensor(s) without a linear", "x.y", "non-finite")


WIDTH = "{} was made for {} of width {}; this model's is 64"


def test_an_adapter_for_models_of_another_width_says_so(small_sd1: Pair, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for maker in (lora, loha, lokr):
        unet = {
            name: maker((128, 96), generator) for name in layers(small_sd1.unet, ("attn2.to_k", "attn2.to_v"))
        }
        path = write(tmp_path / "x.safetensors", kohya(unet))
        refused(small_sd1.model, path, WIDTH.format("x.safetensors", "a U-Net with a context", 96))
        text = {
            name: maker((96, 96), generator) for name in layers(small_sd1.text_encoder, ("q_proj", "fc1"))
        }
        text |= {f"encoder.layers.{i}.mlp.fc1": maker((384, 96), generator) for i in range(24)}
        path = write(tmp_path / "y.safetensors", kohya({}, text))
        refused(small_sd1.model, path, WIDTH.format("y.safetensors", "a text encoder", 96))


def test_sd2s_adapter_on_sd1_names_both_families(tmp_path: Path) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    path = write(tmp_path / "x.safetensors", kohya({name: lora((320, 1024), torch.Generator())}))
    refused(build(SD1, device="meta"), path, "of width 1024 (as SD2); this model's is 768 (as SD1)")


def test_one_layer_of_another_width_is_a_wrong_layer(small_sd1: Pair, small: Tensors, tmp_path: Path) -> None:
    bad = spoilt(small, f"{K}.lora_down.weight", torch.ones(4, 96))
    refused(
        small_sd1.model,
        write(tmp_path / "x.safetensors", bad),
        f"{K}",
        "expected 64 inputs, got 96",
    )


def test_layers_of_other_models_are_unknown(small_pair: Pair, tmp_path: Path) -> None:
    """A deeper text encoder than the model's, and a norm, which no adapter of these kinds changes."""
    generator = torch.Generator().manual_seed(0)
    text = {f"encoder.layers.{i}.mlp.fc1": lora((256, 64), generator) for i in (0, 3)}
    path = write(tmp_path / "x.safetensors", kohya({}, text))
    refused(small_pair.model, path, "2 tensor(s) without a linear", "encoder_layers_3_mlp_fc1")
    path = write(tmp_path / "y.safetensors", kohya({"conv_norm_out": {"diff": torch.ones(32)}}))
    refused(small_pair.model, path, "lora_unet_conv_norm_out.diff")


def test_files_that_are_no_adapters_say_what_they_are(small_sd1: Pair, tmp_path: Path) -> None:
    model = small_sd1.model
    whole = write(tmp_path / "model.safetensors", {k: v.clone() for k, v in file_tensors(model).items()})
    refused(model, whole, "model.safetensors is not an adapter of a known kind", "cond_stage_model.")
    embedding = write(tmp_path / "cat.safetensors", {"emb_params": torch.ones(1, 64)})
    refused(model, embedding, "a textual inversion")
    oft = write(
        tmp_path / "oft.safetensors", {f"{K}.oft_blocks": torch.ones(2), f"{K}.alpha": torch.ones(())}
    )
    refused(model, oft, "an adapter of a kind that is not supported")
    refused(model, tmp_path / "absent.safetensors", "no such file")
    refused(model, tmp_path, "no adapter in this folder", "adapter_model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    refused(model, tmp_path / "text.safetensors", "text.safetensors")


def peft_file(tmp_path: Path, **changes: Any) -> Path:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": False, **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    layer = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = lora((128, 64), torch.Generator().manual_seed(0))
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    write(tmp_path / "adapter_model.safetensors", {f"{layer}.{names[k]}": x for k, x in tensors.items()})
    return tmp_path


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "adapters of type 'IA3' are not supported"),
    "dora": ({"use_dora": True}, "use_dora is not supported"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha must be a positive number, not None"),
    "alpha in words": ({"lora_alpha": "four"}, "lora_alpha must be a positive number, not 'four'"),
    "alpha not a number": ({"lora_alpha": math.nan}, "lora_alpha must be a positive number, not nan"),
    "a large rank": ({"r": 10**400}, "r must be a positive number, not 1000"),
    "another rank": ({"r": 8}, "the rank is 4, but 8 in the adapter's settings"),
    "another rank of the layer": ({"rank_pattern": {"to_k": 2}}, "the rank is 4, but 2"),
    "a list": ({"alpha_pattern": [1]}, "alpha_pattern must be a mapping"),
    "a regular expression": ({"alpha_pattern": {"(a+)+$": 1}}, "must have layer names as keys"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_bad_settings_of_peft_are_refused(small_sd1: Pair, tmp_path: Path, what: str) -> None:
    changes, words = BAD_SETTINGS[what]
    refused(small_sd1.model, peft_file(tmp_path, **changes), words)


def test_peft_needs_its_settings(small_sd1: Pair, tmp_path: Path) -> None:
    apply_lora(small_sd1.model, peft_file(tmp_path) / "adapter_model.safetensors").remove()
    (tmp_path / "adapter_config.json").write_text("{")
    refused(small_sd1.model, tmp_path, "adapter_config.json", "not valid JSON")
    (tmp_path / "adapter_config.json").unlink()
    refused(small_sd1.model, tmp_path, "expected adapter_config.json in the same folder, where PEFT stores")


@pytest.mark.parametrize(
    "text", ["{", "[1]", "[" * 100_000, '{"unet.r": 1}', '{"unet.r": {}, "unet.x": 1e999}']
)
def test_bad_metadata_of_diffusers_is_refused(
    small_sd1: Pair, small: Tensors, tmp_path: Path, text: str
) -> None:
    path = write(tmp_path / "x.safetensors", small, {"lora_adapter_metadata": text})
    refused(small_sd1.model, path, "x.safetensors: lora_adapter_metadata")


# --- damage ---

GOOD = torch.Generator().manual_seed(3)


FEW: Tensors = kohya(
    {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": lora((128, 64), GOOD, rank=2)
        | {"alpha": torch.ones(())},
        "mid_block.attentions.0.proj_in": loha((128, 128, 1, 1), GOOD, rank=1),
        "conv_in": lokr((32, 4, 3, 3), GOOD, second="core"),
        "conv_out": lora((4, 32, 3, 3), GOOD, rank=2, core=True),
        "down_blocks.0.resnets.0.time_emb_proj": lokr((32, 128), GOOD, first="product"),
    }
)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 32, 64, 128]), max_size=5).filter(
    lambda s: math.prod(s) < 2**16
)


DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2]
)


SPOILERS = st.tuples(
    st.sampled_from(sorted(FEW)),
    st.none() | st.tuples(SHAPES, DTYPES) | st.sampled_from(sorted(FEW)) | st.floats(width=16),
)


QUICK = examples(
    60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def applied_or_refused(model: LatentDiffusion, path: Path) -> None:
    try:
        adapter = apply_lora(model, path)
    except CheckpointError:
        pass
    else:
        assert isinstance(adapter, LoraAdapter)
        adapter.fuse()
        adapter.remove()
    assert_untouched(model)


@QUICK
@given(spoilers=st.lists(SPOILERS, min_size=1, max_size=3))
def test_spoilt_tensors_are_applied_or_refused(small_sd1: Pair, tmp_path: Path, spoilers: list[Any]) -> None:
    tensors = dict(FEW)
    for key, value in spoilers:
        if value is None:
            tensors.pop(key, None)
        elif isinstance(value, str):
            tensors[key] = FEW[value]
        elif isinstance(value, float):
            tensors[key] = FEW[key].clone().fill_(value)
        else:
            tensors[key] = torch.ones(value[0]).to(value[1])
    torch.save(tensors, tmp_path / "x.pt")
    applied_or_refused(small_sd1.model, tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@QUICK
@given(edits=EDITS)
def test_damaged_files_are_applied_or_refused(
    small_sd1: Pair, tmp_path: Path, suffix: str, edits: list[Edit]
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if not whole.exists():
        write(whole, FEW) if suffix == ".safetensors" else torch.save(FEW, whole)
    path = tmp_path / f"damaged{suffix}"
    path.unlink(missing_ok=True)
    path.write_bytes(damaged(whole.read_bytes(), edits))
    applied_or_refused(small_sd1.model, path)


def test_the_good_file_of_the_damaged_ones_is_good(small_sd1: Pair, tmp_path: Path) -> None:
    adapter = apply_lora(small_sd1.model, write(tmp_path / "x.safetensors", FEW))
    assert len(adapter.layers) == 5
    adapter.remove()
