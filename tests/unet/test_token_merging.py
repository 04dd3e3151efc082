"""Token merging: the matching, and networks that merge (Bolya and Hoffman 2023)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import tomesd
import torch
from support.accelerated_networks import CONTEXT, X, draw, small_unet
from support.configs import SMALL, TINY
from torch import Tensor, nn

import ldm_core
from ldm_core import LatentDiffusion, build, merge_tokens
from ldm_core.unet import UNet
from ldm_core.unet.token_merging import match

pytestmark = pytest.mark.usefixtures("no_gradients")

# --- the matching ---------------------------------------------------------------------------------------


def brute_force(x: Tensor, h: int, w: int, r: int) -> list[list[set[int]]]:
    """Sets of tokens that share a place, one pair of tokens at a time."""
    result = []
    for image in x.double():
        groups = {i * w + j: {i * w + j} for i in range(0, h, 2) for j in range(0, w, 2)}
        pairs = []
        for source in sorted(set(range(h * w)) - set(groups)):
            likeness = {d: float(torch.cosine_similarity(image[source], image[d], dim=0)) for d in groups}
            best = max(likeness, key=lambda d: likeness[d])
            pairs.append((likeness[best], source, best))
        pairs.sort(reverse=True)
        for _, source, destination in pairs[:r]:
            groups[destination].add(source)
        result.append([*groups.values(), *({source} for _, source, _ in pairs[r:])])
    return result


@pytest.mark.parametrize("size", [(4, 4), (2, 6), (5, 3), (1, 1), (1, 7)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.75])
def test_the_matching_is_the_brute_force_one(size: tuple[int, int], ratio: float) -> None:
    h, w = size
    x = draw(2, h * w, 6)
    merging = match(x, size, ratio)
    cells = -(-h // 2) * -(-w // 2)
    r = min(int(ratio * h * w), h * w - cells)
    assert merging.count == h * w - r
    for place, expected in zip(merging.place.tolist(), brute_force(x, h, w, r)):
        groups = [{i for i, p in enumerate(place) if p == row} for row in range(merging.count)]
        assert sorted(map(sorted, groups)) == sorted(map(sorted, expected))
    means = torch.stack(
        [x[0, [i for i, p in enumerate(merging.place[0]) if p == m]].mean(0) for m in range(h * w - r)]
    )
    torch.testing.assert_close(merging.merge(x)[0], means)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_matching_is_the_authors(size: tuple[int, int], ratio: float) -> None:
    theirs = tomesd.merge.bipartite_soft_matching_random2d
    h, w = size
    x, y = draw(3, h * w, 8), draw(3, h * w, 4, seed=1)
    merge, unmerge = theirs(x, w, h, 2, 2, int(ratio * h * w), no_rand=True)
    ours = match(x, size, ratio)
    torch.testing.assert_close(ours.unmerge(ours.merge(y)), unmerge(merge(y)))


def test_drawn_destinations_are_the_generators() -> None:
    x, generator = draw(2, 64, 8), torch.Generator().manual_seed(3)
    first, second = (match(x, (8, 8), 0.5, generator).place for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(match(x, (8, 8), 0.5, generator.manual_seed(3)).place, first)


def test_drawn_destinations_are_one_of_each_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        merging = match(draw(1, 15, 4), (5, 3), 0.75, generator)
        assert merging.count == 15 - 9 == 6  # as many as there are cells: all the sources are merged
        seen.add(tuple(merging.place[0].tolist()))
    assert len(seen) > 10


def test_equal_tokens_come_back_exactly() -> None:
    token = torch.randint(-9, 9, (2, 1, 8), generator=torch.Generator().manual_seed(0)).float()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = token.to(dtype).expand(2, 48, 8)
        merging = match(x, (6, 8), 0.7)
        assert merging.merge(x).dtype == dtype
        assert torch.equal(merging.unmerge(merging.merge(x)), x)


def test_what_is_not_merged_comes_back_exactly() -> None:
    x = draw(2, 64, 8)
    merging = match(x, (8, 8), 0.4)
    back = merging.unmerge(merging.merge(x))
    for row in range(2):
        counts = merging.place[row].bincount()
        alone = counts[merging.place[row]] == 1
        assert alone.any()
        assert torch.equal(back[row, alone], x[row, alone])
    torch.testing.assert_close(back.sum(1), x.sum(1))  # each group gets its mean as often as it has members


def test_the_mean_of_a_plain_area_is_taken_in_32_bits() -> None:
    x = (1 + draw(1, 4096, 4, seed=2) / 1000).to(torch.bfloat16)
    merging = match(torch.ones_like(x), (64, 64), 0.75)  # all alike: one destination takes every source
    assert int(merging.place[0].bincount().max()) == 3073
    merged = merging.merge(x)
    assert float((merged - 1).abs().max()) <= 2**-7  # bfloat16's last place at 1


# --- token merging in a network -------------------------------------------------------------------------


def test_ratio_0_and_the_time_after_are_plain(unet: UNet) -> None:
    state = {name: module._forward_hooks.copy() for name, module in unet.named_modules()}
    plain = unet(X, 500, CONTEXT)
    with merge_tokens(unet, 0.0):
        assert torch.equal(unet(X, 500, CONTEXT), plain)
    with merge_tokens(unet, 0.5):
        assert not torch.equal(unet(X, 500, CONTEXT), plain)
    with pytest.raises(ValueError, match="expected x of"), merge_tokens(unet, 0.5):
        unet(X[0], 500, CONTEXT)
    assert torch.equal(unet(X, 500, CONTEXT), plain)
    assert {name: module._forward_hooks for name, module in unet.named_modules()} == state
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_the_network_is_diffusers_with_the_authors_merging(unet: UNet, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    model = build(TINY["sd1"])
    torch.manual_seed(0)
    model.unet = UNet(model.config.unet).eval()
    ldm_core.checkpoint.save(model, tmp_path, layout="diffusers")
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    x, context = draw(2, 4, 16, 16), draw(2, 7, 64, seed=1)
    for ratio, depth in ((0.5, 1), (0.75, 1), (0.5, 2)):
        tomesd.apply_patch(theirs, ratio=ratio, max_downsample=depth, use_rand=False)
        with merge_tokens(model, ratio, max_downsample=depth):
            ours = model.unet(x, 321, context)
        torch.testing.assert_close(ours, theirs(x, 321, context).sample, rtol=0, atol=2e-5)
        tomesd.remove_patch(theirs)
    plain = model.unet(x, 321, context)
    torch.testing.assert_close(plain, theirs(x, 321, context).sample, rtol=0, atol=2e-5)
    assert float((ours - plain).abs().max()) > 1e-3


@pytest.mark.parametrize(("depth", "lengths"), [(1, {128, 64, 16}), (2, {128, 32, 16}), (4, {128, 32, 8})])
def test_the_levels_that_merge(unet: UNet, depth: int, lengths: set[int]) -> None:
    with merge_tokens(unet, 0.5, max_downsample=depth), ldm_core.record_attention(unet, "attn1") as maps:
        unet(X, 500, CONTEXT)
    assert {found[0].shape[-1] for found in maps.values()} == lengths
    assert {found[0].shape[-2] for found in maps.values()} == lengths


def test_an_image_does_not_depend_on_its_batch(unet: UNet) -> None:
    """In float64, where no rounding decides which of two nearly equal neighbours a pixel is merged with."""
    wide, x, context = copy.deepcopy(unet).double(), X.double(), CONTEXT.double()
    with merge_tokens(wide, 0.5, max_downsample=4):
        whole = wide(x, 500, context)
        alone = torch.cat([wide(x[i : i + 1], 500, context[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)


def test_odd_sizes_and_gradients() -> None:
    net = small_unet(channel_mult=(1, 2), num_res_blocks=1)
    x = draw(1, 4, 6, 10).requires_grad_()  # 3 x 5 on the second level
    with torch.enable_grad(), merge_tokens(net, 0.6, max_downsample=2):
        net(x, 3, CONTEXT[:1]).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) > 0


@pytest.mark.parametrize("ratio", [-0.1, 0.76, float("nan")])
def test_ratios_outside(unet: UNet, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 0.75\]"), merge_tokens(unet, ratio):
        pass


def test_nothing_to_merge(bundled: LatentDiffusion) -> None:
    for model in (nn.Linear(2, 2), bundled.text_encoder, replace(bundled, unet=lambda x, t, c: x)):
        with pytest.raises(ValueError, match="is no U-Net of this package"), merge_tokens(model):
            pass
    upscaler = UNet(SMALL["x4-upscaler"].unet)  # attends to itself on the coarsest level alone
    with pytest.raises(ValueError, match="no self-attention at levels of max_downsample 4"):
        merge_tokens(upscaler, max_downsample=4).__enter__()
    with merge_tokens(upscaler, max_downsample=8):
        pass
