"""GLIGEN: the network and whole runs against diffusers, published names, gates, files, and bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from support.configs import SMALL_SD1, TINY
from support.controls import draw, shaken
from support.reference import SCHEDULE, random_model, reference_parts, relative_error, unet_arguments
from support.weights import same_weights
from torch import Tensor

import ldm_core
from ldm_core.checkpoint.key_map import to_file
from ldm_core.conditioners import Grounding, GroundingConfig
from ldm_core.config import PRESETS
from ldm_core.control.controlnet import ControlNet
from ldm_core.errors import CheckpointError
from ldm_core.loading.parts import part_of
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import parameter_shapes
from ldm_core.unet.deep_cache import DeepCache
from ldm_core.unet.grounding import GroundedContext
from ldm_core.unet.names import compvis_map, diffusers_map
from ldm_core.unet.network import UNet

NETWORK = 1e-5  # measured: 1.9e-6
RUN = 1e-5  # of latents after 10 steps
BOXES = [("a red cat", 0.1, 0.2, 0.4, 0.5), ("a blue ball", 0.5, 0.5, 0.25, 0.375)]
CORNERS = [[0.1, 0.2, 0.5, 0.7], [0.5, 0.5, 0.75, 0.875]]


def gated(config: Any) -> Any:
    unet = replace(config.unet, gated_self_attention=True)
    return replace(config, unet=unet, conditioner=GroundingConfig())


def opened(model: LatentDiffusion) -> LatentDiffusion:
    """The model with random gates and null features."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.unet.named_parameters():
        if "alpha" in name or "null" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return opened(random_model(gated(SMALL_SD1)))


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    return opened(random_model(gated(TINY["sd1"])))


def reference(net: UNet) -> UNet2DConditionModel:
    theirs = UNet2DConditionModel(**unet_arguments(net.config), attention_type="gated").eval()
    theirs.load_state_dict(to_file(diffusers_map(net.config), net.state_dict()), strict=True)
    return theirs.requires_grad_(False)


@torch.no_grad()
def test_the_network_agrees_with_diffusers(model: LatentDiffusion) -> None:
    net = shaken(UNet(model.config.unet))
    theirs = reference(net)
    x, context, words = draw(2, 4, 16, 16), draw(2, 77, 64, seed=1), draw(2, 30, 64, seed=2)
    boxes = torch.rand(2, 30, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(30) < torch.tensor([[3], [0]])  # the second image has no objects
    objects = net.position_net(boxes, words, mask)
    given = {"boxes": boxes, "positive_embeddings": words, "masks": mask.float()}
    assert relative_error(objects, theirs.position_net(**given)) < NETWORK
    ours = net(x, 500, GroundedContext(context, objects))
    expected = theirs(x, 500, context, cross_attention_kwargs={"gligen": given}).sample
    assert relative_error(ours, expected) < NETWORK
    assert relative_error(net(x, 500, context), expected) > 0.01


def pipeline(model: LatentDiffusion) -> Any:
    from diffusers import StableDiffusionGLIGENPipeline

    parts = {name: part for name, part in reference_parts(plain(model)).items() if name != "image_encoder"}
    parts["unet"] = reference(model.unet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = StableDiffusionGLIGENPipeline(
            **parts, scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False)
        )
    theirs.set_progress_bar_config(disable=True)
    return theirs


def plain(model: LatentDiffusion) -> LatentDiffusion:
    """The model without objects: with the same weights in a U-Net without gated self-attention."""
    unet = replace(model.config.unet, gated_self_attention=False)
    net = UNet(unet).eval()
    net.load_state_dict(model.unet.state_dict(), strict=False)
    config = replace(model.config, unet=unet, conditioner=None)
    return replace(model, conditioner=model.conditioner.text, unet=net.requires_grad_(False), config=config)


@pytest.mark.slow
@pytest.mark.parametrize("until", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_run_agrees_with_diffusers(tiny: LatentDiffusion, until: float) -> None:
    noise = draw(1, 4, 16, 16, seed=3)
    theirs = pipeline(tiny)(
        "a cat and a ball",
        negative_prompt="ugly",
        gligen_phrases=[words for words, *_ in BOXES],
        gligen_boxes=CORNERS,
        gligen_scheduled_sampling_beta=until,
        num_inference_steps=10,
        latents=noise,
        output_type="latent",
        height=32,
        width=32,
    ).images
    inputs = {"prompt": "a cat and a ball", "boxes": BOXES, "until": until}
    sampler = ldm_core.Sampler(tiny)
    request: dict[str, Any] = {"unconditional": "ugly", "steps": 10, "noise": noise, "output": "latent"}
    ours = sampler.sample(inputs, **request)
    assert relative_error(ours, theirs) < RUN
    assert relative_error(sampler.sample(inputs | {"until": 0}, **request), theirs) > 0.01


REQUEST: dict[str, Any] = {"steps": 4, "seed": 0, "output": "latent"}
GROUNDED = {"prompt": "a cat", "boxes": BOXES, "until": 0.5}


def test_without_objects_it_is_the_plain_unet_to_the_bit(tiny: LatentDiffusion) -> None:
    expected = ldm_core.Sampler(plain(tiny)).txt2img("a cat", **REQUEST)
    sampler = ldm_core.Sampler(tiny)
    assert torch.equal(sampler.txt2img("a cat", **REQUEST), expected)
    for inputs in (GROUNDED | {"until": 0}, GROUNDED | {"boxes": []}, {"prompt": "a cat"}):
        assert torch.equal(sampler.sample(inputs, **REQUEST), expected)
    assert not torch.equal(sampler.sample(GROUNDED, **REQUEST), expected)


def test_closed_gates_are_the_plain_unet_to_the_bit(tiny: LatentDiffusion) -> None:
    torch.manual_seed(0)
    closed = ldm_core.build(tiny.config)
    assert all(p.item() == 0 for n, p in closed.unet.named_parameters() if "alpha" in n)
    expected = ldm_core.Sampler(plain(closed)).txt2img("a cat", **REQUEST)
    assert torch.equal(ldm_core.Sampler(closed).sample(GROUNDED, **REQUEST), expected)


def test_objects_act_in_the_first_steps_and_cost_nothing_after(tiny: LatentDiffusion) -> None:
    kinds = []

    def watched(x: Tensor, t: float, context: Any) -> Tensor:
        kinds.append(type(context) is GroundedContext)
        return tiny.unet(x, t, context)

    model = replace(tiny, unet=watched)
    ldm_core.Sampler(model).sample({**GROUNDED, "until": 0.3}, **REQUEST | {"steps": 10})
    assert kinds == [True] * 3 + [False] * 7


def test_images_do_not_depend_on_their_batch(tiny: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(tiny, batch_size=3)
    rows = [GROUNDED, GROUNDED | {"boxes": []}, GROUNDED | {"boxes": BOXES[:1], "prompt": "a ball"}]
    noise = draw(3, 4, 16, 16)
    together = sampler.sample(rows, **REQUEST | {"noise": noise})
    for k in (0, 2):
        alone = sampler.sample(rows[k], **REQUEST | {"noise": noise[k : k + 1]})
        assert torch.allclose(together[k], alone[0], atol=1e-4)


def test_other_parts_work_with_objects(tiny: LatentDiffusion) -> None:
    expected = ldm_core.Sampler(tiny).sample(GROUNDED, **REQUEST)
    cached = replace(tiny, unet=DeepCache(tiny.unet, interval=1))
    assert torch.equal(ldm_core.Sampler(cached).sample(GROUNDED, **REQUEST), expected)
    every_other = replace(tiny, unet=DeepCache(tiny.unet, interval=2, blocks=0))
    assert not torch.equal(ldm_core.Sampler(every_other).sample(GROUNDED, **REQUEST), expected)
    net = ControlNet.of(tiny.unet, hint_widths=(16, 32))
    assert not any("fuser" in name for name in net.state_dict())
    control = ldm_core.Control(net, torch.rand(1, 3, 32, 32))
    drawn = ldm_core.Sampler(tiny).sample(GROUNDED, controls=[control], **REQUEST)
    assert torch.equal(drawn, expected)  # a new ControlNet changes nothing
    with ldm_core.merge_tokens(tiny, 0.5):
        merged = ldm_core.Sampler(tiny).sample(GROUNDED, **REQUEST)
    assert not torch.equal(merged, expected)
    with pytest.raises(ValueError, match="boxes with words are of a whole picture"):
        ldm_core.Sampler(ldm_core.windowed(tiny, size=8)).sample(GROUNDED, **REQUEST)


def test_the_recipe_records_the_boxes(tiny: LatentDiffusion) -> None:
    picture = ldm_core.Sampler(tiny).sample(GROUNDED, steps=1, seed=0)[0]
    recipe = picture.info["recipe"]
    assert (recipe["prompt"], recipe["until"]) == ("a cat", 0.5)
    assert [tuple(box) for box in recipe["boxes"]] == BOXES
    again = {name: recipe[name] for name in ("prompt", "boxes", "until")}
    same = ldm_core.Sampler(tiny).sample(again, steps=recipe["steps"], seed=recipe["seed"])[0]
    assert same.tobytes() == picture.tobytes()


def test_boxes_may_be_mappings_and_lists(tiny: LatentDiffusion) -> None:
    condition: Callable[[Any], Any] = tiny.condition
    keys = ("label", "x", "y", "width", "height")
    expected = condition(GROUNDED).objects
    assert expected.shape == (1, 30, 64)
    for kind in (list, lambda box: dict(zip(keys, box))):
        assert torch.equal(condition(GROUNDED | {"boxes": [kind(box) for box in BOXES]}).objects, expected)


# Files


def published_shapes(adapters: Any) -> dict[str, list[int]]:
    return adapters["gligen-generation-text-box: what it has beyond SD1.4's U-Net"]["tensors"]


def stored_shapes(key_map: Any, shapes: Any) -> dict[str, list[int]]:
    return {
        key: list(
            entry.transform.save(tuple(torch.empty(shapes[n], device="meta") for n in entry.parameters)).shape
        )
        for key, entry in key_map.items()
    }


def test_the_published_names_are_those_of_the_preset(adapters: Any, published: Any) -> None:
    unet = PRESETS["gligen"].unet
    shapes = parameter_shapes(UNet, unet)
    stored = stored_shapes(compvis_map(unet), shapes)
    prefix = "model.diffusion_model."
    sd1 = published["stable-diffusion/v1-inference"]["tensors"]
    base = {key.removeprefix(prefix): list(v) for key, v in sd1.items() if key.startswith(prefix)}
    extra = published_shapes(adapters)
    assert stored == {**base, **{name: list(shape) for name, shape in extra.items()}}
    names = [name for entry in compvis_map(unet).values() for name in entry.parameters]
    assert sorted(names) == sorted(shapes)
    extra_numbers = sum(torch.Size(shape).numel() for shape in extra.values())
    assert extra_numbers == 209_102_240


def test_the_preset_has_diffusers_names() -> None:
    unet = PRESETS["gligen"].unet
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**unet_arguments(unet), attention_type="gated")
    wanted = {name: list(value.shape) for name, value in theirs.state_dict().items()}
    assert stored_shapes(diffusers_map(unet), parameter_shapes(UNet, unet)) == wanted


def authors_file(model: LatentDiffusion, path: Path) -> Path:
    """A file as GLIGEN's authors publish it: dictionaries of tensors, and their configuration."""
    prefixes = {
        "model.diffusion_model.": "model", "first_stage_model.": "autoencoder",
        "cond_stage_model.": "text_encoder",
    }  # fmt: skip
    entries: dict[str, Any] = {name: {} for name in prefixes.values()}
    for key, value in file_tensors(model).items():
        prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
        entries[prefixes[prefix]][key.removeprefix(prefix)] = value
    tables = {"betas": torch.rand(1000), "alphas_cumprod": torch.rand(1000)}
    settings = {"model": {"target": "ldm.modules.UNetModel", "params": {"image_size": 64}}, "total_iters": 5}
    torch.save({**entries, "diffusion": tables, "config_dict": settings}, path)
    return path


def test_the_authors_file_loads(tiny: LatentDiffusion, tmp_path: Path) -> None:
    path = authors_file(tiny, tmp_path / "gligen.bin")
    loaded = ldm_core.load(path, config=tiny.config)
    assert same_weights(loaded, tiny)
    assert isinstance(loaded.conditioner, Grounding)
    assert loaded.conditioner.position_net is loaded.unet.position_net
    assert ldm_core.inspect(path).unknown == ()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["compvis", "diffusers"])
def test_saved_models_load(layout: Any, tiny: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if layout == "compvis" else "folder")
    ldm_core.save(tiny, path, layout=layout)
    loaded = ldm_core.load(path)
    assert (loaded.config, same_weights(loaded, tiny)) == (tiny.config, True)
    report = ldm_core.inspect(path)
    assert (report.sure, report.missing, report.unknown) == ("proved", (), ())
    expected = ldm_core.Sampler(tiny).sample(GROUNDED, **REQUEST)
    assert torch.equal(ldm_core.Sampler(loaded).sample(GROUNDED, **REQUEST), expected)
    if layout == "diffusers":
        theirs = UNet2DConditionModel.from_pretrained(path, subfolder="unet")
        assert theirs.config.attention_type == "gated"


def test_a_file_without_gates_is_refused_by_their_names(tiny: LatentDiffusion, tmp_path: Path) -> None:
    path = authors_file(plain(tiny), tmp_path / "plain.bin")
    with pytest.raises(CheckpointError, match="gated_self_attention is True"):
        ldm_core.load(path, config=tiny.config)


# Bad input

WRONG = {
    "box 0: expected a box within the picture, [0, 1], got (0.5, 0) to (1.2, 0.5)": ("a", 0.5, 0, 0.7, 0.5),
    "got (-0.1, 0) to (0.4, 0.5)": ("a", -0.1, 0, 0.5, 0.5),
    "expected a width and height above 0": ("a", 0, 0, 0, 0.5),
    "four finite numbers": ("a", 0, 0, float("nan"), 0.5),
    "box 0: expected words that say what is in the box, got 3": (3, 0, 0, 0.5, 0.5),
    "box 0: expected words that say what is in the box, got ' '": (" ", 0, 0, 0.5, 0.5),
    "box 0: expected an object as (label, x, y, width, height)": ("a", 0, 0, 0.5),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_boxes(words: str, tiny: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(tiny)
    with pytest.raises(ValueError) as error:
        sampler.sample({"prompt": "a", "boxes": [WRONG[words]]}, steps=1)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_other_wrong_inputs(tiny: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(tiny)
    with pytest.raises(ValueError, match="expected at most 30 boxes, got 31"):
        sampler.sample({"prompt": "a", "boxes": BOXES[:1] * 31}, steps=1)
    with pytest.raises(ValueError, match="expected boxes as a list of"):
        sampler.sample({"prompt": "a", "boxes": "a cat"}, steps=1)
    for until in (1.5, float("nan"), "all"):
        with pytest.raises(ValueError, match=r"until must be a share of the steps in \[0, 1\]"):
            sampler.sample(GROUNDED | {"until": until}, steps=1)
    with pytest.raises(ValueError, match="expected the same until for all images"):
        sampler.sample([GROUNDED, GROUNDED | {"until": 0.1}], steps=1)
    with pytest.raises(ValueError, match="got a context with objects"):
        plain(tiny).unet(draw(1, 4, 8, 8), 1, GroundedContext(draw(1, 7, 64), draw(1, 30, 64)))
    with pytest.raises(ValueError, match=r"expected objects of \(1, N, 64\), got \(2, 30, 64\)"):
        GroundedContext(draw(1, 7, 64), draw(2, 30, 64))
    with pytest.raises(ValueError, match="the unet has no gated self-attention"):
        replace(TINY["sd1"], conditioner=GroundingConfig())
    with pytest.raises(ValueError, match="requires cross-attention"):
        replace(tiny.config.unet, context_dim=None)
    assert part_of(GroundingConfig()).name == "grounding"


@pytest.mark.slow  # SD1's size: 1.1 billion numbers, twice
@torch.no_grad()
def test_the_network_at_full_size() -> None:
    config = PRESETS["gligen"].unet
    net = shaken(UNet(config))
    theirs = reference(net)
    x, context, words = draw(1, 4, 32, 32), draw(1, 77, 768, seed=1), draw(1, 30, 768, seed=2)
    boxes = torch.rand(1, 30, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(30)[None] < 4
    given = {"boxes": boxes, "positive_embeddings": words, "masks": mask.float()}
    ours = net(x, 500, GroundedContext(context, net.position_net(boxes, words, mask)))
    expected = theirs(x, 500, context, cross_attention_kwargs={"gligen": given}).sample
    assert relative_error(ours, expected) < NETWORK
