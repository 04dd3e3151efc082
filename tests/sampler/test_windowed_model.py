"""Models that sample in windows: the U-Net, the autoencoder, layouts, and whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.contracts import AUTOENCODER, AUTOENCODER_VQ, UNET
from support.reference import random_model, relative_error
from torch import Tensor, nn

import ldm_core
from ldm_core import Sampler, Windows, windowed
from ldm_core.autoencoder import AutoencoderKL, AutoencoderVQ
from ldm_core.autoencoder.tiling import WindowedAutoencoder
from ldm_core.bert import BERTConfig, BERTEncoder
from ldm_core.conditioners import Layout, LowResolution
from ldm_core.conditioners.windowed_layout import WindowedLayout
from ldm_core.model import LatentDiffusion
from ldm_core.testing import check_autoencoder, check_unet
from ldm_core.unet import UNet
from ldm_core.unet.windowed import WindowedUNet


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Recording:
    """A noise predictor that records its arguments and mixes all pixels of a window."""

    def __init__(self, channels: int = 2) -> None:
        self.channels = channels
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, x: Tensor, t: Any, context: Any = None, *vector: Tensor) -> Tensor:
        self.calls.append((x, t, context, *vector))
        return x[:, : self.channels] * x.mean(dim=(1, 2, 3), keepdim=True)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(call[0].shape) for call in self.calls]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    """f = 2, a U-Net of two levels, pictures of 32 pixels."""
    return random_model(TINY["sd1"])


# ---- the U-Net ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_each_window_gets_its_part_and_all_conditions(batch_size: int) -> None:
    unet = Recording()
    x, t, context, y = randn(2, 5, 8, 12), torch.tensor([3, 7]), randn(2, 4, 6), torch.tensor([1, 2])
    windowed_unet = WindowedUNet(unet, Windows(8, 4), batch_size=batch_size)
    out = windowed_unet(x, t, context, y)
    assert out.shape == (2, 2, 8, 12)
    assert len(unet.calls) == -(-2 // batch_size)
    assert torch.equal(torch.cat([call[0] for call in unet.calls]), torch.cat([x[..., :8], x[..., 4:]]))
    for number, whole in ((1, t), (2, context), (3, y)):
        assert torch.equal(torch.cat([call[number] for call in unet.calls]), torch.cat([whole, whole]))
    assert torch.equal(out, WindowedUNet(Recording(), Windows(8, 4))(x, t, context, y))
    windowed_unet(x, 5.0)
    assert unet.calls[-1][1:] == (5.0, None)


def test_one_window_is_the_network_itself() -> None:
    torch.manual_seed(0)
    unet, x, context = UNet(UNET).eval(), randn(2, 4, 8, 4), randn(2, 5, UNET.context_dim or 0)
    with torch.no_grad():
        assert torch.equal(WindowedUNet(unet, Windows(16, 8))(x, 3, context), unet(x, 3, context))


@pytest.mark.slow  # three contracts
def test_the_contracts_of_networks_in_windows() -> None:
    torch.manual_seed(0)
    check_unet(WindowedUNet(UNet(UNET), Windows(2 * UNET.downsampling)), UNET)
    windows = Windows(2, 1)
    check_autoencoder(WindowedAutoencoder(AutoencoderKL(AUTOENCODER), windows), AUTOENCODER)
    check_autoencoder(WindowedAutoencoder(AutoencoderVQ(AUTOENCODER_VQ), windows), AUTOENCODER_VQ)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None])
def test_batches_that_are_none(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive int"):
        WindowedUNet(Recording(), Windows(8), batch_size=batch_size)


# ---- the autoencoder ------------------------------------------------------------------------------


def test_decoding_and_encoding_join_what_each_window_gives() -> None:
    torch.manual_seed(0)
    vq = AutoencoderVQ(AUTOENCODER_VQ).eval()
    torch.nn.init.normal_(vq.codebook)
    f = AUTOENCODER_VQ.downsampling
    both = WindowedAutoencoder(vq, Windows(4, 2, weights="equal"))
    z = randn(1, AUTOENCODER_VQ.embed_dim, 4, 6)
    with torch.no_grad():
        images = both.decode(z)
        left, right = vq.decode(z[..., :4]), vq.decode(z[..., 2:])
        middle = (left[..., 2 * f :] + right[..., : 2 * f]) / 2
        expected = torch.cat([left[..., : 2 * f], middle, right[..., 2 * f :]], dim=3)
        torch.testing.assert_close(images, expected)
        latents = both.encode(images).mode()
        left, right = vq.encode(images[..., : 4 * f]).mode(), vq.encode(images[..., 2 * f :]).mode()
        expected = torch.cat([left[..., :2], (left[..., 2:] + right[..., :2]) / 2, right[..., 2:]], dim=3)
        torch.testing.assert_close(latents, expected)
        assert torch.equal(both.encode(images).sample(torch.Generator()), latents)
        assert torch.equal(both.decode(z[..., :4]), vq.decode(z[..., :4]))


def test_posteriors_of_other_kinds_are_refused() -> None:
    class Own:
        def encode(self, images: Tensor) -> object:
            return object()

    with pytest.raises(ValueError, match="a DiagonalGaussian or a PointMass, got a object"):
        WindowedAutoencoder(Own(), Windows(4), factor=2).encode(randn(1, 3, 8, 8))


# ---- layouts --------------------------------------------------------------------------------------


def embed(tokens: Tensor) -> Tensor:
    return tokens[..., None].float()


def test_a_layout_is_cropped_to_each_window() -> None:
    boxes = [(3, 0.25, 0.5, 0.5, 0.5)]
    layout = WindowedLayout(Layout(embed))
    context = layout(boxes).context
    unet = Recording()
    windowed_unet = WindowedUNet(unet, Windows((8, 4), 4), context_for=layout.for_window, batch_size=2)
    windowed_unet(randn(1, 2, 8, 12), 5, context)
    contexts = torch.cat([call[2] for call in unet.calls])
    for left, found in zip((0, 4, 8), contexts, strict=True):
        x, y, width, height = left / 12, 0.0, 4 / 12, 1.0
        corners = [
            round(y * 89) * 90 + round(x * 89),
            round((y + height) * 89) * 90 + round((x + width) * 89),
        ]
        assert found[:-2].tolist() == Layout(embed)(boxes).context[0, :-2].tolist()
        assert found[-2:, 0].tolist() == corners
        cropped = Layout(embed, crop=(x, y, width, height))
        assert list(cropped.crop_tokens()) == corners


def test_windows_are_parts_of_a_crop() -> None:
    layout = Layout(embed, crop=(0.5, 0.0, 0.5, 0.5), flip=True)  # from the left edge, once mirrored
    assert layout.crop_tokens() == Layout(embed, crop=(0.0, 0.0, 0.5, 0.5)).crop_tokens()
    part = Layout(embed, crop=(0.25, 0.0, 0.25, 0.5)).crop_tokens()
    assert layout.crop_tokens((0.5, 0.0, 0.5, 1.0)) == part


def test_a_layout_model_in_windows(model: LatentDiffusion) -> None:
    torch.manual_seed(0)
    encoder = BERTEncoder(BERTConfig(64, 1, 8192, 92)).eval().requires_grad_(False)
    whole = replace(model, conditioner=Layout(encoder, names=["cat", "dog"]))
    boxes = [[("cat", 0, 0, 0.5, 1)], [("dog", 0.5, 0, 0.5, 1)]]
    options: dict[str, Any] = {"steps": 2, "seed": 5, "output": "latent"}
    one = Sampler(windowed(whole, size=16)).sample(boxes, **options)
    assert torch.equal(one, Sampler(whole).sample(boxes, **options))
    wide = Sampler(windowed(whole, size=16, batch_size=2)).sample(boxes, width=64, **options)
    assert wide.shape == (2, 4, 16, 32)
    assert wide.isfinite().all()


# ---- models ---------------------------------------------------------------------------------------


def test_pictures_of_one_window_are_the_model_s_own(model: LatentDiffusion) -> None:
    options: dict[str, Any] = {"steps": 3, "seed": 1, "output": "tensor"}
    assert torch.equal(
        Sampler(windowed(model)).txt2img("a", **options), Sampler(model).txt2img("a", **options)
    )


@pytest.mark.parametrize("weights", ["pyramid", "equal"])
def test_a_run_in_windows_predicts_the_weighted_mean(model: LatentDiffusion, weights: Any) -> None:
    """One step of a picture of two windows, against the U-Net called by hand."""
    large = windowed(model, size=16, stride=8, weights=weights)
    options: dict[str, Any] = {"steps": 1, "seed": 0, "width": 48, "guidance_scale": 1.0, "output": "latent"}
    found: list[Tensor] = []
    unet = replace(large, unet=lambda x, t, c: found.append(large.unet(x, t, c)) or found[-1])
    Sampler(unet).txt2img("a", **options)
    x = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    t = Sampler(model).scheduler.timesteps(model.noise_schedule, 1)[0][0]
    context = model.condition("a").context
    share = Windows(16, 8, weights).weight(Windows(16, 8).places(16, 24)[0]).float()
    with torch.no_grad():
        left, right = (model.unet(x[..., k : k + 16], t, context) * share for k in (0, 8))
    total, norm = torch.zeros(1, 4, 16, 24), torch.zeros(16, 24)
    for k, part in ((0, left), (8, right)):
        total[..., k : k + 16] += part
        norm[..., k : k + 16] += share
    assert relative_error(found[0], total / norm) < 1e-5


def test_equal_weights_are_those_of_the_u_net_alone(model: LatentDiffusion) -> None:
    """In pixels, each window's own edge would be visible."""
    large: Any = windowed(model, size=8, weights="equal", wrap=True)
    assert large.unet.windows == Windows(8, weights="equal", wrap=True)
    assert large.autoencoder.windows == Windows(8, wrap=True)


def test_every_task_runs_in_windows(model: LatentDiffusion) -> None:
    sampler = Sampler(windowed(model, size=(8, 16), stride=8, batch_size=3), batch_size=1)
    options: dict[str, Any] = {"steps": 1, "seed": [3, 4], "output": "tensor"}
    pictures = sampler.txt2img(["a", "b"], height=32, width=56, **options)
    assert pictures.shape == (2, 3, 32, 56)
    assert sampler.img2img(["a", "b"], pictures, 0.5, **options).shape == (2, 3, 32, 56)
    mask = torch.zeros(1, 1, 32, 56)
    mask[..., 20:40] = 1
    repainted = sampler.inpaint(["a", "b"], pictures, mask, **options)
    assert torch.equal(repainted[..., :20], pictures[..., :20])
    alone = sampler.txt2img("b", height=32, width=56, steps=1, seed=4, output="tensor")
    assert relative_error(pictures[1:], alone) < 1e-4


def test_joined_channels_are_cut_like_the_latent() -> None:
    config = replace(TINY["sd1"], unet=replace(TINY["sd1"].unet, in_channels=7))
    unet = Recording(4)
    model = replace(random_model(config), conditioner=LowResolution(), unet=unet)
    small = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"steps": 1, "seed": 0, "output": "tensor"}
    large = Sampler(windowed(model, size=16, stride=8)).sample(small, **options)
    assert large.shape == (1, 3, 32, 48)
    assert unet.shapes == [(1, 7, 16, 16)] * 2
    for (x, *_), left in zip(unet.calls, (0, 8), strict=True):
        assert torch.equal(x[:, 4:], small[..., left : left + 16] * 2 - 1)


def test_memory_is_that_of_a_window(model: LatentDiffusion) -> None:
    """The largest output of any layer does not grow with the picture."""
    largest: list[int] = []

    def largest_output(width: int) -> int:
        largest.clear()
        options: dict[str, Any] = {"steps": 1, "seed": 0, "guidance_scale": 1.0, "output": "tensor"}
        Sampler(large).txt2img("a", width=width, **options)
        return max(largest)

    large = windowed(model, size=16, stride=8)

    def record(module: nn.Module, args: Any, output: Any) -> None:
        largest.append(output.numel())

    layers = [
        layer
        for network in (large.unet.unet, large.autoencoder.autoencoder)  # type: ignore[attr-defined]
        for layer in network.modules()
    ]
    hooks = [layer.register_forward_hook(record) for layer in layers if not list(layer.children())]
    try:
        assert largest_output(32) == largest_output(128)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
def test_other_parts_of_the_package_work_in_windows(model: LatentDiffusion) -> None:
    options: dict[str, Any] = {"steps": 3, "seed": 0, "width": 48, "output": "latent"}
    plain = Sampler(windowed(model, size=16)).txt2img("a", **options)
    cached = replace(model, unet=ldm_core.DeepCache(model.unet, interval=1))
    assert torch.equal(Sampler(windowed(cached, size=16)).txt2img("a", **options), plain)
    skipping = replace(model, unet=ldm_core.DeepCache(model.unet, interval=2))
    assert Sampler(windowed(skipping, size=16)).txt2img("a", **options).isfinite().all()
    large = windowed(model, size=16)
    with ldm_core.record_attention(large) as maps:
        Sampler(large).txt2img("a", **options)
    assert maps
    assert large.to(torch.float32).dtype == torch.float32
    ldm_core.set_attention(large, "math")
    again = Sampler(large).txt2img("a", **options)
    ldm_core.set_attention(large, "auto")
    assert relative_error(again, plain) < 1e-4


def test_windows_that_do_not_fit_the_model(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2 latent pixels, not \(9, 9\)"):
        windowed(model, size=9)
    with pytest.raises(ValueError, match=r"already works in windows of \(16, 16\)"):
        windowed(windowed(model))
    with pytest.raises(ValueError, match="width must be a positive multiple of 4"):
        Sampler(windowed(model)).txt2img("a", steps=1, width=50)
