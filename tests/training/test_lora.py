"""LoRA that learns: against PEFT's gradients, and its files against whoever else reads them."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as DiffusersLoader
from peft import LoraConfig, PeftModel
from support.adapter_files import Pair, largest_error, same_bits
from support.configs import TINY as KINDS
from support.reference import random_model, relative_error
from support.trained_loras import BOTH, NAMINGS
from torch import Tensor

from ldm_core.adapters.lora import adaptable_layers, apply_lora
from ldm_core.adapters.lora_names import module_names
from ldm_core.training import DiffusionObjective, TrainableLora
from ldm_core.training.lora import ATTENTION, CONVOLUTIONS, FEED_FORWARD, PROJECTIONS

EVERYTHING = ATTENTION + FEED_FORWARD + PROJECTIONS + CONVOLUTIONS


# As README promises: float32 through some 30 layers, in another order of additions. Measured: at most 4.4e-6.
TOLERANCE = 1e-5


def filled(lora: TrainableLora, seed: int = 3) -> TrainableLora:
    """With a B that is not zero, as after some steps: the change of a layer is as large as its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, up in lora.factors.values():
            up.copy_(0.5 * torch.randn(up.shape, generator=generator))
    return lora


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


def test_removing_it_gives_the_weights_their_requires_grad_back(sd1: Pair) -> None:
    sd1.model.unet.conv_in.weight.requires_grad_(False)
    weights = [p for network in sd1.model.modules.values() for p in network.parameters()]
    before = [p.requires_grad for p in weights]
    lora = TrainableLora(sd1.model, rank=1)
    DiffusionObjective(sd1.model, adapter=lora)
    assert not any(p.requires_grad for p in weights)
    lora.remove()
    assert [p.requires_grad for p in weights] == before
    sd1.model.unet.conv_in.weight.requires_grad_(True)
    lora.remove()
    assert sd1.model.unet.conv_in.weight.requires_grad


@pytest.mark.parametrize("order", [1, -1], ids=["first first", "last first"])
def test_of_several_the_last_removed_gives_requires_grad_back(sd1: Pair, order: int) -> None:
    sd1.model.unet.conv_in.weight.requires_grad_(False)
    weights = [p for network in sd1.model.modules.values() for p in network.parameters()]
    before = [p.requires_grad for p in weights]
    loras = []
    for parts in (("unet",), ("text_encoder",)):
        loras.append(TrainableLora(sd1.model, rank=1, parts=parts))
        DiffusionObjective(sd1.model, adapter=loras[-1])
    first, last = loras[::order]
    first.remove()
    first.remove()
    assert not any(p.requires_grad for p in weights)
    last.remove()
    assert [p.requires_grad for p in weights] == before
    sd1.model.unet.conv_in.weight.requires_grad_(True)


def test_a_copy_is_without_the_model(sd1: Pair) -> None:
    lora = filled(TrainableLora(sd1.model, rank=1))
    live = sd1.ours()
    file = io.BytesIO()
    torch.save(lora, file)
    assert len(file.getvalue()) < 2 * sum(4 * p.numel() for p in lora.parameters()) + 100_000
    file.seek(0)
    for other in (copy.deepcopy(lora), torch.load(file, weights_only=False)):
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), lora.parameters(), strict=True))
        other.remove()
    assert same_bits(sd1.ours(), live)
    lora.remove()
    assert not any("lora" in name for network in sd1.model.modules.values() for name in vars(network))


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
        # Of 256 numbers and more, from a generator that gives the same everywhere.
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


@pytest.mark.one_in(5)
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


@pytest.mark.one_in(3)
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
