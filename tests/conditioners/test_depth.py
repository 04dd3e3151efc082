"""Depth maps against the formula, in float64, and against diffusers' preparation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline
from PIL import Image
from support.texts import text_conditioner
from torch import Tensor

from ldm_core.conditioners import Depth

MAP = torch.rand(32, 48, generator=torch.Generator().manual_seed(0)) * 40
TEXT = text_conditioner()


def reference(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Cubic convolution (Keys 1981, a = -0.75) around pixel centres, then the range."""

    def weight(d: float) -> float:
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    def resize(line: list[float], length: int) -> list[float]:
        out = []
        for i in range(length):
            x = (i + 0.5) * len(line) / length - 0.5
            near = range(math.floor(x) - 1, math.floor(x) + 3)
            out.append(sum(weight(x - j) * line[min(max(j, 0), len(line) - 1)] for j in near))
        return out

    rows = torch.tensor([resize(row, size[1]) for row in depth.tolist()], dtype=torch.float64)
    small = torch.tensor([resize(column, size[0]) for column in rows.T.tolist()], dtype=torch.float64).T
    return 2 * (small - small.min()) / (small.max() - small.min() + 0.001) - 1


def test_the_map_is_resized_and_scaled_per_picture() -> None:
    conditioner = Depth(TEXT)
    inputs = [{"prompt": "a", "depth": MAP}, {"prompt": "b", "depth": -3 * MAP[None]}]
    condition = conditioner(inputs)
    assert condition.concat is not None
    assert condition.concat.shape == (2, 1, 4, 6)
    for found, depth in zip(condition.concat, (MAP, -3 * MAP)):
        assert float((found[0] - reference(depth, (4, 6))).abs().max()) < 1e-5
    assert torch.equal(condition.context, TEXT(["a", "b"]).context)
    assert condition.vector is None
    assert (conditioner.count(inputs), conditioner.latent_size(inputs)) == (2, (4, 6))


def test_diffusers_prepares_the_same_up_to_its_missing_0_001() -> None:
    pipeline: Any = SimpleNamespace(vae_scale_factor=8)
    theirs = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline, torch.zeros(1, 3, 32, 48), MAP[None], 1, False, torch.float32, torch.device("cpu")
    )
    found = Depth(TEXT)({"depth": MAP}).concat
    # The range of the map is 40 here, so the constant changes results of up to 2 by 2 * 0.001 / 40 at most.
    assert float((found - theirs).abs().max()) < 1e-4


def test_prompts_alone_give_the_context_alone() -> None:
    conditioner = Depth(TEXT)
    for prompts in ("a", ["a", "b"], conditioner.unconditional):
        condition = conditioner(prompts)
        assert torch.equal(condition.context, TEXT(prompts).context)
        assert condition.concat is None
        assert conditioner.latent_size(prompts) is None
    assert conditioner.count(["a", "b"]) == 2
    assert conditioner.modules == TEXT.modules


def test_a_constant_map_is_far_away_everywhere() -> None:
    found = Depth(TEXT)({"depth": torch.full((16, 16), 7.0)}).concat
    assert torch.equal(found, torch.full((1, 1, 2, 2), -1.0))


def test_pil_maps_have_their_values() -> None:
    values = (MAP * 1000).numpy()
    expected = Depth(TEXT)({"depth": torch.from_numpy(values.astype(np.uint16).astype(np.float32))}).concat
    for image in (Image.fromarray(values.astype(np.uint16)), Image.fromarray(values.astype(np.int32))):
        assert torch.equal(Depth(TEXT)({"depth": image}).concat, expected)
    depth = Depth(TEXT)({"depth": Image.fromarray(values)}).concat
    torch.testing.assert_close(depth, expected, rtol=0, atol=1e-3)


def test_estimates() -> None:
    seen = []

    def estimate(image: Tensor) -> Tensor:
        seen.append(image)
        return image.mean(dim=1)[:, ::2, ::2]

    conditioner = Depth(TEXT, estimate)
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1))
    found = conditioner({"prompt": "a", "image": image}).concat
    assert torch.equal(seen[0], image[None])
    expected = reference(image.mean(dim=0)[::2, ::2], (4, 6))
    assert float((found[0, 0] - expected).abs().max()) < 1e-5
    assert torch.equal(conditioner(torch.stack([image, image])).concat, torch.cat([found, found]))
    larger = conditioner({"image": image, "depth": MAP[:16, :16]})
    assert larger.concat.shape == (1, 1, 4, 6)
    assert len(seen) == 3, "a map that is given is not estimated"
    pil = Image.new("RGB", (48, 32), "red")
    assert conditioner.latent_size(pil) == (4, 6)
    with pytest.raises(ValueError, match=r"the result of estimate: expected finite"):
        Depth(TEXT, lambda image: image[:, 0] * torch.nan)({"image": pil})
    with pytest.raises(ValueError, match=r"the result of estimate: expected depth of \(H, W\)"):
        Depth(TEXT, lambda image: image)({"image": pil})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            None,
            "expected map as a prompt, or as a mapping with prompt, depth, image, or a list of one.*NoneType",
        ),
        ([], "got an empty list"),
        (["a", {"depth": MAP}], "got str and dict"),
        ({"prompt": "a"}, "expected a depth map or an image, got neither"),
        ({"prompt": "a", "image": Image.new("RGB", (8, 8))}, "needs estimate= of the conditioner"),
        ({"prompt": 3, "depth": MAP}, "prompt must be a string, not int"),
        (
            {"depth": MAP, "noise_level": 3},
            r"expected the fields prompt, depth, image, got \['noise_level'\]",
        ),
        ({"depth": Image.new("RGB", (8, 8))}, "got an image of mode RGB"),
        ({"depth": "map.png"}, "got str"),
        ({"depth": MAP[0]}, r"got \(48,\)"),
        ({"depth": MAP.expand(2, 32, 48)}, r"got \(2, 32, 48\)"),
        ({"depth": MAP[:0]}, r"got \(0, 48\)"),
        ({"depth": MAP[:4]}, r"expected 8 pixels or more, got \(4, 48\)"),
        ({"depth": MAP * torch.nan}, "finite depth values"),
        ([{"depth": MAP}, {"depth": MAP[:16]}], "pictures of one size, got 48x16, 48x32"),
    ],
)
def test_what_is_no_depth(inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Depth(TEXT).count(inputs, "map")
    with pytest.raises(ValueError):
        Depth(TEXT)(inputs)
