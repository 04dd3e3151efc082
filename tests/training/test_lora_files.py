"""Trained LoRAs: the names in their files, how they train, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.adapter_files import TINY, Pair
from support.configs import TINY as KINDS
from support.reference import random_model
from support.trained_loras import BOTH, NAMINGS
from support.training_runs import losses, pictures, run
from torch import nn

from ldm_core.adapters.lora_names import layer_names, module_names
from ldm_core.adapters.lora_writer import write_lora
from ldm_core.config import SD1, SD2_BASE
from ldm_core.model import LatentDiffusion
from ldm_core.training import DiffusionObjective, TrainableLora
from ldm_core.training.data_order import noise_generators
from ldm_core.training.dataset import collate
from ldm_core.training.lora import CONVOLUTIONS, PROJECTIONS

# --- names and shapes ---


UNCONDITIONAL = replace(SD1, text_encoder=None, unet=replace(SD1.unet, context_dim=None))


@pytest.mark.parametrize("config", [SD1, SD2_BASE, UNCONDITIONAL], ids=["sd1", "sd2", "unconditional"])
def test_names_for_files_are_the_inverse_of_those_from_files(config: Any) -> None:
    known = layer_names(config)
    for layer, (module, _) in module_names(config).items():
        prefix = "unet." if layer.startswith("unet.") else "text_encoder.text_model."
        assert known[prefix + module] == layer
    assert len({module for module, _ in module_names(config).values()}) == len(module_names(config))


def test_a_tensor_of_several_layers_is_no_layer() -> None:
    """CompVis's self-attention stores queries, keys and values in one; a change of it fits none of them."""
    known = layer_names(UNCONDITIONAL)
    assert known["lora_unet_middle_block_1_proj_out"] == "unet.mid.attention.attn.to_out"
    assert known["lora_unet_mid_block_attentions_0_to_q"] == "unet.mid.attention.attn.to_q"
    assert not [name for name in known if "qkv" in name]


def keys(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}, file.metadata()  # noqa: SIM118


def test_a_projection_has_the_form_that_the_model_s_files_have(tmp_path: Path) -> None:
    for kind, ones in (("sd1", (1, 1)), ("sd2", ())):
        lora = TrainableLora(random_model(KINDS[kind]), rank=2, layers=PROJECTIONS)
        lora.save(tmp_path / "x.safetensors")
        shapes, metadata = keys(tmp_path / "x.safetensors")
        assert shapes["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"] == (2, 64, *ones)
        assert shapes["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"] == (64, 2, *ones)
        assert shapes["lora_unet_mid_block_attentions_0_proj_in.alpha"] == ()
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")


def test_text_encoders_have_the_names_that_kohya_and_diffusers_know(tmp_path: Path) -> None:
    lora = TrainableLora(random_model(TINY), rank=1, layers=("to_q",), parts=("text_encoder",))
    for names, key in (
        ("kohya", "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"),
        ("diffusers", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"),
    ):
        lora.save(tmp_path / "x.safetensors", names=names)  # type: ignore[arg-type]
        assert key in keys(tmp_path / "x.safetensors")[0]
    lora.save(tmp_path / "folder", names="peft")
    settings = json.loads((tmp_path / "folder" / "text_encoder" / "adapter_config.json").read_text())
    assert settings["target_modules"] == [f"encoder.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert not (tmp_path / "folder" / "unet").exists()


@settings(max_examples=8, deadline=None)
@given(rank=st.integers(1, 40), alpha=st.floats(1e-3, 1e3), dtype=st.sampled_from(["float32", "float16"]))
def test_any_rank_and_alpha_come_back(rank: int, alpha: float, dtype: str) -> None:
    """The scale is alpha / rank: alpha in float32 in kohya's files, exact in the others."""
    import tempfile

    layer = "unet.mid.attention.blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(rank)
    factors = {layer: (torch.randn(rank, 64, generator=generator), torch.ones(64, rank))}
    shapes = {f"{layer}.weight": (64, 64)}
    from ldm_core.adapters.lora_file import read_adapter

    with tempfile.TemporaryDirectory() as folder:
        for names in NAMINGS:
            path = Path(folder, "f" if names == "peft" else f"{names}.safetensors")
            write_lora(path, factors, alpha, TINY, names=names, dtype=getattr(torch, dtype))  # type: ignore[arg-type]
            delta = read_adapter(path / "unet" if names == "peft" else path, TINY, shapes)[layer]
            assert (delta.rank, delta.scale) == (rank, pytest.approx(alpha / rank, rel=1e-7))
            assert torch.equal(delta.factors["lora_down"], factors[layer][0].to(getattr(torch, dtype)))


# --- training ---


def trained(folder: Path, *, model: LatentDiffusion | None = None, **options: Any) -> tuple[Any, Any]:
    model = model or random_model(TINY)
    lora = TrainableLora(model, rank=2, parts=BOTH)
    trainer = run(folder, DiffusionObjective(model, adapter=lora), samples=pictures(6, 16), **options)
    return trainer, lora


SHORT = {"steps": 3, "batch_size": 2, "save_every": 2, "warmup": 1}


def test_training_changes_the_factors_alone(tmp_path: Path) -> None:
    model = random_model(TINY)
    before = copy.deepcopy({part: module.state_dict() for part, module in model.modules.items()})
    trainer, lora = trained(tmp_path, model=model, **SHORT)
    for part, module in model.modules.items():
        state = module.state_dict()
        assert list(state) == list(before[part])
        assert all(torch.equal(x, before[part][name]) for name, x in state.items())
        assert all(p.grad is None for p in module.parameters())
    assert all(bool(up.any()) for _, up in lora.factors.values()), "every B has learned"
    assert {id(p) for p in trainer.objective.parameters()} == {id(p) for p in lora.parameters()}


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_to_the_bit(tmp_path: Path) -> None:
    class CutOff(Exception):
        pass

    class Fails(DiffusionObjective):
        def loss(self, batch: Any, generators: Any, step: int) -> Any:
            if step == 2:
                raise CutOff
            return super().loss(batch, generators, step)

    whole, lora = trained(tmp_path / "whole", **SHORT)
    model = random_model(TINY)
    objective = Fails(model, adapter=TrainableLora(model, rank=2, parts=BOTH))
    with pytest.raises(CutOff):
        run(tmp_path / "cut", objective, samples=pictures(6, 16), **SHORT)
    taken_up, again = trained(tmp_path / "cut", **SHORT)
    assert taken_up.step == whole.step == 3
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")

    def same() -> bool:
        pairs = zip(lora.parameters(), again.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same()
    with whole.averaged(), taken_up.averaged():
        assert same()


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    few = SHORT | {"steps": 2}
    trained(tmp_path / "kept", **few)
    trained(tmp_path / "recomputed", gradient_checkpointing=True, **few)
    model = random_model(TINY)
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "recomputed"), rel=1e-5)
    objective = DiffusionObjective(model, adapter=TrainableLora(model))
    assert model.unet in objective.networks()


def test_bfloat16_weights_have_factors_in_float32() -> None:
    """The weights stay as they are, and the gradients are nearly those of whole ones."""
    samples = pictures(
        4, 32
    )  # of fewer, the coarsest level is one pixel, and group norm's inputs are two values
    batch = collate([samples[i] for i in range(4)])
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(KINDS["sd1"], dtype=dtype)
        lora = TrainableLora(model, rank=2, parts=BOTH)
        loss, _ = DiffusionObjective(model, adapter=lora)(batch, noise_generators(0, range(4)), 0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert model.dtype == dtype
        assert {p.dtype for p in lora.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in lora.parameters() if p.grad is not None]))
    assert float(F.cosine_similarity(*gradients, dim=0)) > 0.995  # measured: 0.9995


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be an integer of 1 or more, not 0"),
        ({"rank": -3}, "rank must be"),
        ({"rank": 2.5}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"alpha": 0}, "alpha must be a finite positive number"),
        ({"alpha": float("nan")}, "alpha must be a finite positive number"),
        ({"layers": ("to_x",)}, "unet has no linear or convolutional layer whose name ends in .*to_x"),
        ({"layers": ()}, "has no linear or convolutional layer"),
        ({"layers": CONVOLUTIONS, "parts": BOTH}, "text_encoder has no linear"),
        ({"parts": ()}, "parts must be"),
        ({"parts": ("autoencoder",)}, "parts must be"),
    ],
)
def test_bad_values_are_refused_and_leave_the_model_alone(sd1: Pair, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainableLora(sd1.model, **options)


def test_float16_weights_are_refused() -> None:
    model = random_model(TINY, dtype=torch.float16)
    lora = TrainableLora(model)
    with pytest.raises(
        ValueError, match=r"underflow in float16 weights; load the model with dtype=torch\.float32"
    ):
        DiffusionObjective(model, adapter=lora)


def test_an_adapter_and_the_text_encoder_are_not_both_asked_for() -> None:
    model = random_model(TINY)
    with pytest.raises(ValueError, match="train_text_encoder cannot be used with an adapter"):
        DiffusionObjective(model, adapter=TrainableLora(model), train_text_encoder=True)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    lora = TrainableLora(random_model(TINY))
    for path, names in (("x.pt", "kohya"), ("x", "diffusers"), ("x.safetensors", "peft")):
        with pytest.raises(
            ValueError, match=r"(a file name that ends in \.safetensors|the name of a folder)"
        ):
            lora.save(tmp_path / path, names=names)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names must be one of kohya, diffusers, peft"):
        lora.save(tmp_path / "x.safetensors", names="webui")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be written"):
        lora.save(tmp_path / "nowhere" / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_text_encoder_of_another_kind_is_left_alone() -> None:
    """One that is a plain function has no layers to change."""
    model = random_model(TINY)
    encoder = model.text_encoder
    bare = replace(model, text_encoder=lambda tokens: encoder(tokens))
    assert not isinstance(bare.text_encoder, nn.Module)
    with pytest.raises(ValueError, match="text_encoder has no linear"):
        TrainableLora(bare, parts=BOTH)
    TrainableLora(bare).remove()
