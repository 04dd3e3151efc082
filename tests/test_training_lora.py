"""LoRA that learns: against PEFT's gradients, and its files against whoever else reads them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapter_files import TINY, Pair, largest_error, same_bits
from conftest import TINY as KINDS
from diffusers.loaders import StableDiffusionLoraLoaderMixin as DiffusersLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from reference import random_model, relative_error
from safetensors import safe_open
from torch import Tensor, nn
from training_runs import losses, pictures, run

from ldm_core.checkpoint.lora_names import layer_names, module_names
from ldm_core.checkpoint.lora_writer import write_lora
from ldm_core.config import SD1, SD2_BASE
from ldm_core.lora import adaptable_layers, apply_lora
from ldm_core.model import LatentDiffusion
from ldm_core.training import DiffusionObjective, TrainableLora
from ldm_core.training.lora import ATTENTION, CONVOLUTIONS, FEED_FORWARD, PROJECTIONS
from ldm_core.training.order import noise_streams
from ldm_core.training.samples import collate

EVERYTHING = ATTENTION + FEED_FORWARD + PROJECTIONS + CONVOLUTIONS
BOTH = ("unet", "text_encoder")
TOLERANCE = 1e-5  # float32 through some 30 layers, in another order of additions


def filled(lora: TrainableLora, seed: int = 3) -> TrainableLora:
    """With a B that is not zero, as after some steps: the change of a layer is as large as its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, up in lora.factors.values():
            up.copy_(0.5 * torch.randn(up.shape, generator=generator))
    return lora


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """SD1's projections are convolutions in files, SD2's linear; SD2 leaves its last text block out."""
    return Pair(TINY if request.param == "sd1" else KINDS["sd2"])


@pytest.fixture(scope="module")
def sd1() -> Pair:
    return Pair(TINY)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Any:
    yield
    for name in {"pair", "sd1"} & set(request.fixturenames):
        model = request.getfixturevalue(name).model
        assert not any(layer._forward_hooks for layer in adaptable_layers(model).values())


# --- on the model ---


def test_before_the_first_step_the_model_is_what_it_was_to_the_bit(pair: Pair) -> None:
    lora = TrainableLora(pair.model, layers=EVERYTHING, parts=BOTH)
    assert same_bits(pair.ours(), pair.before)
    filled(lora)
    assert largest_error(pair.ours(), pair.before) > 0.01
    lora.remove()
    lora.remove()


@pytest.mark.parametrize(
    ("layers", "parts", "count"),
    [
        # the U-Net has 3 transformers of one block with two attentions, and its levels two residual blocks
        (ATTENTION, ("unet",), None),
        (FEED_FORWARD, ("unet",), None),
        (ATTENTION, ("text_encoder",), 12),
        (ATTENTION + FEED_FORWARD, ("text_encoder",), 18),
        (("attn2.to_k", "attn2.to_v"), ("unet",), None),
    ],
)
def test_layers_are_chosen_by_the_ends_of_their_names(
    sd1: Pair, layers: tuple[str, ...], parts: Any, count: int | None
) -> None:
    lora = TrainableLora(sd1.model, rank=2, layers=layers, parts=parts)
    transformers = len([n for n in adaptable_layers(sd1.model) if n.endswith("attention.proj_in")])
    blocks = {ATTENTION: 8, FEED_FORWARD: 2}.get(layers, 2)
    assert len(lora.factors) == (transformers * blocks if count is None else count)
    assert all(name.endswith(layers) and name.startswith(parts) for name in lora.factors)
    learn = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert len(learn) == 2 * len(lora.factors)
    lora.remove()


def test_everything_is_every_layer_that_sees_the_picture_or_the_text(sd1: Pair) -> None:
    lora = TrainableLora(sd1.model, rank=1, layers=EVERYTHING, parts=BOTH)
    others = {name for name in adaptable_layers(sd1.model) if name not in lora.factors}
    assert {name.split(".")[-1] for name in others} == {"linear1", "linear2", "time_proj"}
    lora.remove()


def test_blocks_that_the_text_encoder_leaves_out_are_left_out() -> None:
    model = random_model(KINDS["sd2"])
    assert model.config.text_encoder.clip_skip == 1
    lora = TrainableLora(model, parts=("text_encoder",))
    assert {name.split(".")[2] for name in lora.factors} == {"0", "1"}
    assert len(model.text_encoder.blocks) == 3


def test_the_start_is_peft_s(sd1: Pair) -> None:
    """A is uniform within 1 / sqrt(inputs), whatever the layer; the seed decides."""
    lora = TrainableLora(sd1.model, rank=16, layers=EVERYTHING)
    unet = copy.deepcopy(sd1.unet)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "conv1"]))
    theirs = {n: p for n, p in unet.named_parameters() if "lora_A" in n}
    names = module_names(sd1.model.config)
    for name, (down, up) in lora.factors.items():
        down, module = down.detach(), names[name][0]
        bound = down[0].numel() ** -0.5
        assert float(down.abs().max()) <= bound
        assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not up.any()
        if module.endswith(("to_q", "conv1")):
            other = theirs[f"{module}.lora_A.default.weight"].detach()
            assert other.shape == down.shape
            assert float(other.std()) == pytest.approx(float(down.std()), rel=0.1)
    lora.remove()
    again, other = (TrainableLora(sd1.model, rank=16, layers=EVERYTHING, seed=s) for s in (0, 1))
    for name in lora.factors:
        assert torch.equal(again.factors[name][0], lora.factors[name][0])
        assert not torch.equal(other.factors[name][0], lora.factors[name][0])
    again.remove()
    other.remove()


# --- against PEFT and diffusers ---


def target(pair: Pair) -> Tensor:
    return torch.randn(pair.x.shape, generator=torch.Generator().manual_seed(11))


def test_gradients_are_peft_s(pair: Pair, tmp_path: Path) -> None:
    """The same factors, input and loss in diffusers' U-Net with PEFT's layers: equal gradients of all."""
    lora = filled(TrainableLora(pair.model, rank=3, alpha=2, layers=EVERYTHING))
    lora.save(tmp_path / "folder", names="peft")
    theirs = PeftModel.from_pretrained(
        copy.deepcopy(pair.unet), str(tmp_path / "folder" / "unet"), is_trainable=True
    )
    ours = pair.model.unet(pair.x, 500, pair.context)
    (ours - target(pair)).square().mean().backward()
    outputs = theirs(pair.x, 500, pair.context).sample
    (outputs - target(pair)).square().mean().backward()
    assert relative_error(ours.detach(), outputs.detach()) < TOLERANCE

    parameters = dict(theirs.named_parameters())
    names = module_names(pair.model.config)
    compared = 0
    for name, both in lora.factors.items():
        for half, mine in zip("AB", both):
            other = parameters[f"base_model.model.{names[name][0]}.lora_{half}.default.weight"].grad
            assert mine.grad is not None
            assert other is not None
            assert relative_error(mine.grad, other.reshape(mine.shape)) < 1e-4, name  # measured: 2e-5
            compared += 1
    assert compared == 2 * len(lora.factors)
    assert compared == len([n for n, p in parameters.items() if p.requires_grad])
    lora.remove()


NAMINGS = ["kohya", "diffusers", "peft"]


@pytest.mark.parametrize("names", NAMINGS)
def test_files_read_back_are_the_live_one_to_the_bit(pair: Pair, tmp_path: Path, names: Any) -> None:
    lora = filled(TrainableLora(pair.model, rank=3, alpha=2, layers=EVERYTHING, parts=BOTH))
    live = pair.ours()
    path = tmp_path / ("folder" if names == "peft" else "x.safetensors")
    lora.save(path, names=names)
    lora.remove()
    assert same_bits(pair.ours(), pair.before)
    paths = [path / part for part in BOTH] if names == "peft" else [path]
    adapters = [apply_lora(pair.model, part) for part in paths]
    assert same_bits(pair.ours(), live)
    for adapter in adapters:
        adapter.remove()


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_diffusers_reads_them(pair: Pair, tmp_path: Path, names: Any) -> None:
    lora = filled(TrainableLora(pair.model, rank=3, alpha=2, layers=EVERYTHING, parts=BOTH))
    live = pair.ours()
    lora.save(tmp_path / "x.safetensors", names=names)
    lora.remove()
    unet, text_encoder = pair.copies()
    state, alphas, metadata = DiffusersLoader.lora_state_dict(
        str(tmp_path), weight_name="x.safetensors", unet_config=unet.config, return_lora_metadata=True
    )
    assert (alphas is None) == (names == "diffusers")
    DiffusersLoader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    DiffusersLoader.load_lora_into_text_encoder(state, alphas, text_encoder, metadata=metadata)
    assert largest_error(live, pair.theirs(unet, text_encoder)) < TOLERANCE


def test_a_unet_of_diffusers_loads_the_file_by_itself(sd1: Pair, tmp_path: Path) -> None:
    lora = filled(TrainableLora(sd1.model, rank=2, alpha=6, layers=ATTENTION + PROJECTIONS))
    live = sd1.ours()
    lora.save(tmp_path / "pytorch_lora_weights.safetensors", names="diffusers")
    lora.remove()
    unet, text_encoder = sd1.copies()
    unet.load_lora_adapter(str(tmp_path), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    assert largest_error(live, sd1.theirs(unet, text_encoder)) < TOLERANCE


def test_peft_reads_its_folders(pair: Pair, tmp_path: Path) -> None:
    lora = filled(TrainableLora(pair.model, rank=3, alpha=2, layers=EVERYTHING, parts=BOTH))
    live = pair.ours()
    lora.save(tmp_path / "folder", names="peft")
    lora.remove()
    theirs = [
        PeftModel.from_pretrained(network, str(tmp_path / "folder" / part))
        for network, part in zip(pair.copies(), BOTH)
    ]
    assert largest_error(live, pair.theirs(*theirs)) < TOLERANCE


# --- names and shapes ---


@pytest.mark.parametrize("config", [SD1, SD2_BASE], ids=["sd1", "sd2"])
def test_names_for_files_are_the_inverse_of_those_from_files(config: Any) -> None:
    known = layer_names(config)
    for layer, (module, _) in module_names(config).items():
        prefix = "unet." if layer.startswith("unet.") else "text_encoder.text_model."
        assert known[prefix + module] == layer
    assert len({module for module, _ in module_names(config).values()}) == len(module_names(config))


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
    from ldm_core.checkpoint.lora_file import read_adapter

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


def test_a_run_that_is_cut_off_goes_on_to_the_bit(tmp_path: Path) -> None:
    class CutOff(Exception):
        pass

    class Fails(DiffusionObjective):
        def loss(self, batch: Any, streams: Any, step: int) -> Any:
            if step == 2:
                raise CutOff
            return super().loss(batch, streams, step)

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
        loss, _ = DiffusionObjective(model, adapter=lora)(batch, noise_streams(0, range(4)), 0)
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
        ({"rank": 0}, "rank must be a whole number from 1 on, not 0"),
        ({"rank": -3}, "rank must be"),
        ({"rank": 2.5}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"alpha": 0}, "alpha must be a positive number"),
        ({"alpha": float("nan")}, "alpha must be a positive number"),
        ({"layers": ("to_x",)}, "the model's unet has no linear or convolutional layer named .*to_x"),
        ({"layers": ()}, "has no linear or convolutional layer"),
        ({"layers": CONVOLUTIONS, "parts": BOTH}, "the model's text_encoder has no linear"),
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
        ValueError, match=r"float16 weights become zero; load the model with dtype=torch\.float32"
    ):
        DiffusionObjective(model, adapter=lora)


def test_an_adapter_and_the_text_encoder_are_not_both_asked_for() -> None:
    model = random_model(TINY)
    with pytest.raises(ValueError, match="leave train_text_encoder out"):
        DiffusionObjective(model, adapter=TrainableLora(model), train_text_encoder=True)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    lora = TrainableLora(random_model(TINY))
    for path, names in (("x.pt", "kohya"), ("x", "diffusers"), ("x.safetensors", "peft")):
        with pytest.raises(ValueError, match=r"expected a (name that ends in \.safetensors|folder's name)"):
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
