"""Semantic maps against the original order of operations, in float64, and the inputs that are refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_core.conditioners.semantic_map import SemanticMap, SemanticMapConfig, SpatialRescaler, colours, paint

K = 7


@pytest.fixture(scope="module")
def conditioner() -> SemanticMap:
    torch.manual_seed(0)
    return SemanticMap(SpatialRescaler(SemanticMapConfig(classes=K)))


def reference(classes: Tensor, weight: Tensor, stages: int = 2) -> Tensor:
    """One-hot map, halved by the mean of 2x2 blocks without an odd last row, then the 1x1 convolution."""
    x = torch.zeros(len(classes), K, *classes.shape[1:], dtype=torch.float64)
    for b, i, j in np.ndindex(*classes.shape):
        x[b, classes[b, i, j], i, j] = 1
    for _ in range(stages):
        height, width = x.shape[2] // 2, x.shape[3] // 2
        half = torch.zeros(*x.shape[:2], height, width, dtype=torch.float64)
        for i, j in np.ndindex(height, width):
            half[:, :, i, j] = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(2, 3))
        x = half
    return torch.einsum("ck,bkhw->bchw", weight[:, :, 0, 0].double(), x)


def random_map(*shape: int) -> Tensor:
    return torch.randint(0, K, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(2, 16, 24), (1, 18, 21), (1, 7, 4)])
def test_the_original_order_gives_the_same(conditioner: SemanticMap, shape: tuple[int, ...]) -> None:
    classes = random_map(*shape)
    expected = reference(classes, conditioner.network.channel_mapper.weight.detach())
    with torch.no_grad():
        condition = conditioner(classes)
    assert condition.concat is not None
    assert condition.concat.shape == expected.shape == (shape[0], 3, shape[1] // 4, shape[2] // 4)
    assert float((condition.concat - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert conditioner.latent_size(classes) == (shape[1] // 4, shape[2] // 4)
    assert condition.context is condition.vector is None


def test_all_inputs_of_one_map_give_the_same(conditioner: SemanticMap) -> None:
    classes = random_map(2, 8, 12)
    expected = conditioner(classes).concat
    pictures = [Image.fromarray(one.astype(np.uint8)) for one in classes.numpy()]
    one_hot = torch.nn.functional.one_hot(classes, K).permute(0, 3, 1, 2).float()
    for same in (
        pictures,
        colours(classes),
        one_hot,
        classes.to(torch.uint8),
        [p.convert("I") for p in pictures],
    ):
        assert torch.equal(conditioner(same).concat, expected)
        assert conditioner.count(same) == 2
        assert conditioner.latent_size(same) == (2, 3)
    for one in (classes[0], pictures[0]):
        assert torch.equal(conditioner(one).concat, expected[:1])


def test_what_a_sampler_and_a_loader_read(conditioner: SemanticMap) -> None:
    assert conditioner.unconditional is None
    assert conditioner.modules == {"conditioner": conditioner.network}
    (entry,) = conditioner.network.state_dict().items()
    assert (entry[0], entry[1].shape) == ("channel_mapper.weight", (3, K, 1, 1))
    sizes = dict(SpatialRescaler(SemanticMapConfig()).named_parameters())
    assert sizes["channel_mapper.weight"].shape == (3, 182, 1, 1)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.full((1, 8, 8), K), rf"expected classes in 0\.\.{K - 1} in maps, got also {K}$"),
        (torch.full((1, 8, 8), -1), "got also -1"),
        (Image.new("L", (8, 8), 255), "got also 255"),
        (Image.new("RGB", (8, 8)), r"\(mode P or L\), got the mode RGB"),
        ([Image.new("L", (8, 8)), Image.new("L", (8, 12))], "maps of one size, got 8x12, 8x8"),
        (torch.zeros(1, 8, 8), r"integer tensor \(B, H, W\).*got \(1, 8, 8\) of torch.float32"),
        (torch.zeros(1, K, 8, 8, dtype=torch.long), "of torch.int64"),
        (torch.zeros(8, 8, dtype=torch.bool), "of torch.bool"),
        (torch.zeros(1, K + 1, 8, 8), f"one-hot map of {K} channels, got {K + 1}"),
        (torch.zeros(1, K, 8, 8), "to be one-hot"),
        (torch.full((1, K, 8, 8), 1 / K), "to be one-hot"),
        (torch.full((1, K, 8, 8), torch.nan), "to be one-hot"),
        (random_map(1, 3, 8), r"at least 4 x 4 pixels, got \(1, 3, 8\)"),
        (random_map(0, 8, 8), r"got \(0, 8, 8\)"),
        ([], "got none"),
        ("map.png", "got str"),
        (None, "got NoneType"),
        ([random_map(1, 8, 8)], "got Tensor"),
    ],
)
def test_what_is_no_map(conditioner: SemanticMap, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditioner.count(inputs, "maps")
    with pytest.raises(ValueError):
        conditioner(inputs)


def test_shapes_are_painted_one_over_the_other() -> None:
    painted = paint(8, 12, [(3, [(0, 0.5), (1, 1)]), (5, [(0.75, 1), (0.25, 0.25)])], background=2)
    expected = torch.full((1, 8, 12), 2)
    expected[:, 4:] = 3
    expected[:, 2:, 3:9] = 5
    assert torch.equal(painted, expected)
    triangle = paint(32, 32, [(300, [(0, 1), (1, 1), (0.5, 0)])])
    assert set(triangle.unique().tolist()) == {0, 300}
    assert abs(float((triangle == 300).float().mean()) - 0.5) < 0.06
    assert triangle[0, 0, 0] == 0
    box = [(0, 0), (1, 1)]
    shapes: list[Any] = [(1, box[:1]), (1, [(0, 0), (2, 1)]), ("sky", box), (1.5, box), (-1, box), (1, 3), 7]
    for shape in [*shapes, (1, ["ab", "cd"]), (1, [(0, float("nan")), (1, 1)])]:
        with pytest.raises(ValueError, match=r"expected a shape as \(class, corners\).* got"):
            paint(8, 8, [shape])
    for size in ((0, 8), (8, 2.5), (2**16, 2**16), ("8", 8)):
        with pytest.raises(ValueError, match="expected a height and a width in"):
            paint(*size, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected the background as a class"):
        paint(8, 8, [], background=-1)


def test_colours_keep_the_classes_in_a_png(conditioner: SemanticMap) -> None:
    classes = torch.arange(256).reshape(1, 16, 16)
    (image,) = colours(classes)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert np.array_equal(np.array(Image.open(file)), classes[0].numpy())
    assert len(set(map(tuple, np.array(image.convert("RGB")).reshape(-1, 3).tolist()))) == 256
    for wrong in (torch.full((1, 1, 1), 256), torch.full((1, 1, 1), 0.5), "map.png"):
        with pytest.raises(ValueError, match="expected classes"):
            colours(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"classes": 0}, {"channels": None}, {"stages": 17}])
def test_bad_configs(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"semantic map: {next(iter(fields))} must be an int"):
        SemanticMapConfig(**fields)
