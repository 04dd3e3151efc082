"""`ldm_core.compile` and `ldm_core.capture`: the same pictures, one compilation, graphs that see changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.recorded_graph import RecordedGraph
from support.small_models import small_model
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import ldm_core
from ldm_core import ClassifierFreeGuidance, DeepCache, LatentDiffusion, Sampler, merge_tokens
from ldm_core.unet import UNet
from ldm_core.unet.captured import CapturedUNet

OPTIONS: dict[str, Any] = {"steps": 3, "seed": 1, "guidance_scale": 3.0, "output": "latent"}
ROUNDING = 1e-4  # after all steps; measured: 2e-5
GRAPHS: list[RecordedGraph] = []


@pytest.fixture(scope="module")
def plain() -> LatentDiffusion:
    torch.manual_seed(0)
    return ldm_core.build(TINY["sd1"])


@pytest.fixture(scope="module")
def smallest() -> LatentDiffusion:
    """One level of one block, since compiling takes time for every operation."""
    torch.manual_seed(0)
    config = TINY["sd1"]
    unet = replace(config.unet, channel_mult=(1,), attention_resolutions=(1,))
    return ldm_core.build(
        replace(config, unet=unet, autoencoder=replace(config.autoencoder, ch_mult=(1,)), image_size=16)
    )


def parted(model: LatentDiffusion) -> LatentDiffusion:
    return replace(model, unet=copy.deepcopy(model.unet), autoencoder=copy.deepcopy(model.autoencoder))


def captured(model: LatentDiffusion, limit: int = 8) -> LatentDiffusion:
    """A copy of the model whose U-Net is recorded in graphs, which GRAPHS holds."""
    GRAPHS.clear()
    model = replace(model, unet=copy.deepcopy(model.unet))
    unet: Any = model.unet

    def new_graph() -> RecordedGraph:
        GRAPHS.append(RecordedGraph())
        return GRAPHS[-1]

    unet.runner = CapturedUNet(unet, new_graph, limit)
    return model


@pytest.fixture
def graphs(plain: LatentDiffusion) -> LatentDiffusion:
    return captured(plain)


def draw(model: LatentDiffusion, prompt: Any = "a cat", **options: Any) -> Tensor:
    result: Tensor = Sampler(model).txt2img(prompt, **{**OPTIONS, **options})
    return result


def expect_same(
    model: LatentDiffusion, other: LatentDiffusion, prompt: Any = "a cat", **options: Any
) -> None:
    torch.testing.assert_close(
        draw(model, prompt, **options), draw(other, prompt, **options), rtol=0, atol=ROUNDING
    )


# --- compile --------------------------------------------------------------------------------------------


@pytest.mark.slow  # compiling takes long on a busy machine
def test_a_run_of_50_steps_compiles_once(smallest: LatentDiffusion) -> None:
    """The U-Net and the decoder, each without a graph break; another prompt uses what is compiled."""
    torch._dynamo.reset()
    counter, plain, model = CompileCounterWithBackend("aot_eager"), smallest, parted(smallest)
    assert ldm_core.compile(model, backend=counter, fullgraph=True) is model
    expect_same(model, plain, steps=50)
    assert counter.frame_count == 1
    expect_same(model, plain, "a dog", output="tensor")
    assert counter.frame_count == 2
    assert list(model.unet.state_dict()) == list(plain.unet.state_dict())  # type: ignore[attr-defined]
    with merge_tokens(model, 0.5), merge_tokens(plain, 0.5):  # by hooks
        expect_same(model, plain)
    assert counter.frame_count == 2


@pytest.mark.slow  # two compilations
def test_a_unet_that_is_compiled_by_hand_takes_numbers(smallest: LatentDiffusion) -> None:
    """t is a constant in the first compilation and a variable in the second, for all other timesteps."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(smallest.unet, backend=counter, fullgraph=True)  # type: ignore[call-overload]
    expect_same(replace(smallest, unet=compiled), smallest, steps=10)
    assert counter.frame_count <= 2


@pytest.mark.slow  # Inductor writes and compiles C++
def test_inductor_computes_the_same(smallest: LatentDiffusion) -> None:
    torch._dynamo.reset()
    expect_same(ldm_core.compile(parted(smallest), fullgraph=True), smallest, output="tensor")


# --- capture --------------------------------------------------------------------------------------------


def test_every_step_replays_one_graph(graphs: LatentDiffusion, plain: LatentDiffusion) -> None:
    expect_same(graphs, plain)
    assert [graph.replays for graph in GRAPHS] == [OPTIONS["steps"]]


def test_another_prompt_is_not_drawn_with_the_first_ones_keys(
    graphs: LatentDiffusion, plain: LatentDiffusion
) -> None:
    first = draw(graphs)
    expect_same(graphs, plain, "a dog", negative_prompt="a tree")
    assert (draw(graphs, "a dog") - first).abs().max() > 10 * ROUNDING
    assert len(GRAPHS) == 1
    condition = plain.condition("a bird")  # of a caller, who may write to its memory
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([7.0])
    with torch.no_grad():
        for _ in range(2):
            ours, theirs = (model.unet(x, t, condition.context) for model in (graphs, plain))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)
            condition.context.mul_(2)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "guidance", [ClassifierFreeGuidance(batched=False), ClassifierFreeGuidance(interval=(0.0, 0.5))], ids=str
)
def test_a_result_outlives_the_next_replay(
    guidance: Any, graphs: LatentDiffusion, plain: LatentDiffusion
) -> None:
    for batch_size in (None, 1):
        ours, theirs = (
            Sampler(model, guidance=guidance, batch_size=batch_size).txt2img("a cat", num_images=2, **OPTIONS)
            for model in (graphs, plain)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["unconditional", "class", "x4"])
def test_vectors_joined_channels_and_no_context(kind: str) -> None:
    model = small_model(kind)
    inputs: Any = {"unconditional": None, "class": [3], "x4": torch.rand(1, 3, 8, 8)}[kind]
    ours, theirs = (
        Sampler(one).sample(inputs, steps=3, seed=1, output="latent") for one in (captured(model), model)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)
    assert sum(graph.replays for graph in GRAPHS) == 3


def scale_in_place(unet: Any) -> None:
    with torch.no_grad():
        unet.mid.res1.conv1.weight.mul_(2)


def replace_a_weight(unet: Any) -> None:
    unet.conv_in.weight = torch.nn.Parameter(2 * unet.conv_in.weight.detach(), requires_grad=False)


def move_a_weight(unet: Any) -> None:
    unet.conv_in.weight.data = 2 * unet.conv_in.weight.data


def assign(unet: Any) -> None:
    state = {name: 1.5 * value for name, value in unet.state_dict().items()}
    unet.load_state_dict(state, assign=True)
    unet.requires_grad_(False)


def replace_a_layer(unet: Any) -> None:
    unet.mid.res1 = copy.deepcopy(unet.mid.res2)


def replace_a_function(unet: Any) -> None:
    for layer in (unet.mid.attention.blocks[0].attn1, unet.mid.attention.blocks[0].attn2):
        layer.attention = lambda q, k, v, *, causal=False: 2 * q


def to_float64(unet: Any) -> None:
    unet.double()


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "change",
    [
        scale_in_place,
        replace_a_weight,
        move_a_weight,
        assign,
        replace_a_layer,
        replace_a_function,
        to_float64,
    ],
    ids=lambda change: change.__name__,
)
def test_changes_of_the_model_are_seen(
    change: Callable[[Any], None], graphs: LatentDiffusion, plain: LatentDiffusion
) -> None:
    before, changed = draw(graphs), replace(plain, unet=copy.deepcopy(plain.unet))
    change(graphs.unet)
    change(changed.unet)
    expect_same(graphs, changed)
    if change is not to_float64:
        assert (draw(graphs) - before).abs().max() > 10 * ROUNDING
    assert len(GRAPHS) == (1 if change is scale_in_place else 2)


def test_hooks_and_recorders_are_called(graphs: LatentDiffusion, plain: LatentDiffusion) -> None:
    draw(graphs)
    with merge_tokens(graphs, 0.5), merge_tokens(plain, 0.5):
        expect_same(graphs, plain)
    assert [graph.replays for graph in GRAPHS] == [OPTIONS["steps"]]
    with ldm_core.record_attention(graphs) as maps:
        draw(graphs)
    assert all(len(recorded) == OPTIONS["steps"] for recorded in maps.values())
    cached = [replace(model, unet=DeepCache(model.unet, 2)) for model in (graphs, plain)]  # type: ignore[arg-type]
    expect_same(*cached)


def test_gradients_are_recorded_as_ever(graphs: LatentDiffusion) -> None:
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    graphs.unet(x, 7, graphs.condition("a cat").context).square().sum().backward()
    assert x.grad is not None
    assert GRAPHS == []


@pytest.mark.slow  # many runs
def test_shapes_have_graphs_of_their_own_up_to_a_limit(plain: LatentDiffusion) -> None:
    model = captured(plain, limit=2)
    for width in (32, 48, 32, 64, 32, 48):
        expect_same(model, plain, width=width)
    assert len(GRAPHS) == 4, "32, 48, 64, which replaces 48, and 48 again"


def test_under_inference_mode_and_after_it(graphs: LatentDiffusion, plain: LatentDiffusion) -> None:
    with torch.inference_mode():
        inside = draw(graphs)
    expect_same(graphs, plain)
    torch.testing.assert_close(inside.clone(), draw(plain), rtol=0, atol=ROUNDING)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
def test_a_copy_is_plain(copied: Callable[[Any], UNet], graphs: LatentDiffusion) -> None:
    draw(graphs)
    unet = copied(graphs.unet)
    assert unet.runner is None
    scale_in_place(unet)
    assert not torch.equal(draw(replace(graphs, unet=unet)), draw(graphs))


def test_what_is_missing_is_named(plain: LatentDiffusion, graphs: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"capture needs a model on a CUDA device, got one on cpu"):
        ldm_core.capture(plain)
    for limit in (0, 1.5, None):
        with pytest.raises(ValueError, match="limit must be a whole number of graphs"):
            ldm_core.capture(plain, limit=limit)  # type: ignore[arg-type]
    for door in (ldm_core.compile, ldm_core.capture):
        with pytest.raises(ValueError, match="expected a model with a U-Net of this package, got Linear"):
            door(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="compile expects a model that is not captured"):
        ldm_core.compile(graphs)
