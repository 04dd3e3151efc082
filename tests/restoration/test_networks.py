"""Every network for faces against a reference that shares no code with it, and what each must satisfy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from restoration import reference
from restoration.small import CODEFORMER, GFPGAN, SMALL, file_tensors, picture, random_network
from torch import Tensor

from ldm_core.config import ConfigError
from ldm_core.noise import generators, randn
from ldm_core.restoration import (
    CodeFormerConfig,
    GFPGANConfig,
    GPENConfig,
    ParseNetConfig,
    RetinaFaceConfig,
)
from ldm_core.restoration.retinaface import decode
from ldm_core.restoration.retinaface.anchors import anchors

# float64 differs by the order of sums only; float32 has 24 bits.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5}
TYPES = pytest.mark.parametrize("dtype", CLOSE)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert wanted.abs().max() > 0.01
    assert error < CLOSE[found.dtype]


def small(name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """(the network, the tensors of its file in float64)."""
    network = random_network(SMALL[name], dtype)
    return network, {key: value.double() for key, value in file_tensors(network).items()}


@pytest.mark.one_in(2)
@TYPES
@pytest.mark.parametrize(("w", "adain"), [(0.0, True), (0.5, True), (1.0, False)])
def test_codeformer(w: float, adain: bool, dtype: torch.dtype) -> None:
    network, tensors = small("codeformer", dtype)
    x = picture(16, dtype=dtype)
    wanted, logits = reference.codeformer(tensors, x.double(), w, adain)
    assert_close(network(x, w=w, adain=adain), wanted)
    assert_close(network.predict(x)[0], logits)
    assert torch.equal(network.predict(x)[0].argmax(2), logits.argmax(2))


@pytest.mark.one_in(2)
@TYPES
def test_face_autoencoder(dtype: torch.dtype) -> None:
    network, tensors = small("face_autoencoder", dtype)
    x = picture(16, dtype=dtype)
    assert_close(network(x), reference.face_autoencoder(tensors, x.double()))


@pytest.mark.one_in(2)
@TYPES
@pytest.mark.parametrize("variant", ["clean", "original", "bilinear"])
def test_gfpgan(variant: str, dtype: torch.dtype) -> None:
    network, tensors = small(f"gfpgan {variant}", dtype)
    x = picture(32, dtype=dtype)
    stored = [tensors[f"stylegan_decoder.noises.noise{i}"] for i in range(7)]
    wanted = reference.gfpgan(tensors, x.double(), variant, stored)
    assert_close(network(x, noise="stored"), wanted)
    drawn = generators([5, 6])
    maps = [randn((2, 1, size, size), drawn).double() for size in (4, 8, 8, 16, 16, 32, 32)]
    wanted = reference.gfpgan(tensors, x.double(), variant, maps)
    assert_close(network(x, seed=5), wanted)
    assert torch.equal(network(x, noise=maps), network(x, seed=5))


@pytest.mark.one_in(2)
@TYPES
def test_gpen(dtype: torch.dtype) -> None:
    network, tensors = small("gpen", dtype)
    x = picture(16, dtype=dtype)
    assert_close(network(x), reference.gpen(tensors, x.double()))


@pytest.mark.one_in(2)
@TYPES
def test_parsenet(dtype: torch.dtype) -> None:
    network, tensors = small("parsenet", dtype)
    x = picture(16, dtype=dtype)
    for found, wanted in zip(network(x), reference.parsenet(tensors, x.double())):
        assert_close(found, wanted)


@pytest.mark.one_in(2)
@TYPES
@pytest.mark.parametrize(("name", "slope"), [("resnet", 0.0), ("mobilenet", 0.1)])
def test_retinaface(name: str, slope: float, dtype: torch.dtype) -> None:
    network, tensors = small(name, dtype)
    x = ((picture(70, batch=1, dtype=dtype) + 1) * 127.5)[..., :45]
    for found, wanted in zip(network(x), reference.retinaface(tensors, x.double(), slope)):
        assert_close(found, wanted)


# --- what follows from the definitions ---


def test_without_fidelity_the_input_reaches_the_picture_through_the_codes_only() -> None:
    """At w = 0 the fusion weights are not used at all, and nothing depends on them."""
    network = random_network(CODEFORMER)
    x = picture(16)
    before = network(x, w=0)
    assert not torch.equal(before, network(x, w=0.01))
    for parameter in network.fuse.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(network(x, w=0), before)


def test_more_fidelity_moves_along_the_same_line() -> None:
    """With one place of fusion, its result is affine in w."""
    network = random_network(replace(CODEFORMER, fuse=(8,)))
    seen: list[Tensor] = []
    network.fuse["8"].register_forward_hook(lambda module, given, result: seen.append(result))
    for w in (0.25, 0.5, 1.0):
        network(picture(16), w=w)
    quarter, half, full = seen
    torch.testing.assert_close(half - quarter, (full - half) / 2)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["gpen", "codeformer", "parsenet", "gfpgan original", "gfpgan clean"])
def test_a_face_does_not_depend_on_its_batch(name: str) -> None:
    network = random_network(SMALL[name])
    size = getattr(SMALL[name], "size", 16)
    x = picture(size, batch=3)
    for k in range(3):
        own = {"seed": k} if "gfpgan" in name else {}
        alone, joined = network(x[k : k + 1], **own), network(x)
        if name == "parsenet":
            alone, joined = alone[0], joined[0]
        torch.testing.assert_close(joined[k : k + 1], alone, rtol=1e-9, atol=1e-9)


def test_the_same_seed_gives_the_same_result_and_none_a_fresh_one() -> None:
    network = random_network(GFPGAN)
    x = picture(32)
    assert torch.equal(network(x), network(x, seed=0))
    torch.testing.assert_close(network(x, seed=[3, 9])[:1], network(x[:1], seed=3), rtol=1e-9, atol=1e-9)
    assert not torch.equal(network(x), network(x, seed=1))
    assert not torch.equal(network(x, seed=None), network(x, seed=None))
    state = torch.random.get_rng_state()
    network(x, seed=None)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_clean_variant_is_the_bilinear_one_with_its_scales_multiplied_in() -> None:
    """The conversion by which the clean files were made, up to the epsilon of demodulation."""
    scaled = random_network(SMALL["gfpgan bilinear"])
    clean = random_network(GFPGAN)
    # Modules that an activation follows, whose gain of sqrt(2) goes into weight and bias. In a block of the
    # U-Net, the gain of `conv2` and the division of the sum by sqrt(2) cancel.
    activated = re.compile(r"first|final_conv|(down|up)\.\d\.conv1|(scale|shift)\.\d\.0|decoder\.mapping\..*")
    noise_and_bias = re.compile(r"decoder\.(first|convs\.\d)\.(noise_weight|bias)")
    ours = scaled.state_dict()
    for name, value in clean.state_dict().items():
        owner, _, tensor = name.rpartition(".")
        module = scaled.get_submodule(owner)
        gain = {"weight": getattr(module, "gain", 1.0), "bias": getattr(module, "bias_gain", 1.0)}.get(
            tensor, 1
        )
        if activated.fullmatch(owner) or noise_and_bias.fullmatch(name):
            gain *= 2**0.5
        elif owner.endswith("skip"):
            gain /= 2**0.5
        value.copy_(ours[name] * gain)
    x = picture(32)
    torch.testing.assert_close(clean(x), scaled(x), rtol=1e-6, atol=1e-6)
    z = picture(8)[:, 0, 0]
    torch.testing.assert_close(clean.decoder.mapping(z), scaled.decoder.mapping(z), rtol=1e-9, atol=1e-9)


def test_anchors_and_what_they_decode_to() -> None:
    places = anchors(70, 45)
    assert len(places) == 2 * (9 * 6 + 5 * 3 + 3 * 2)
    assert places[:3].tolist() == [[4, 4, 16], [4, 4, 32], [12, 4, 16]]
    assert places[-1].tolist() == [48, 80, 512]
    zeros = torch.zeros(1, len(places), 16, dtype=torch.float64)
    found = decode((zeros[..., :4], zeros[..., 4:6], zeros[..., 6:]), 70, 45)
    assert found.boxes[0, 0].tolist() == [-4, -4, 12, 12]
    assert (found.scores == 0.5).all()
    assert found.points[0, 2].tolist() == [[12, 4]] * 5
    one = zeros.clone()
    one[0, 0] = torch.arange(16) / 10
    found = decode((one[..., :4], one[..., 4:6], one[..., 6:]), 70, 45)
    width, height = 16 * torch.tensor([0.04, 0.06], dtype=torch.float64).exp()
    x, y = 4 + 0.1 * 0 * 16, 4 + 0.1 * 0.1 * 16
    wanted = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    torch.testing.assert_close(found.boxes[0, 0], wanted)
    assert found.points[0, 0, 0].tolist() == pytest.approx([4 + 0.1 * 0.6 * 16, 4 + 0.1 * 0.7 * 16])
    with pytest.raises(ValueError, match="expected the outputs of 150 anchors for 70 x 45 pixels, got 3"):
        decode((zeros[:, :3, :4], zeros[:, :3, 4:6], zeros[:, :3, 6:]), 70, 45)


# --- bad input ---


@pytest.mark.parametrize("w", [-0.01, 1.01, float("nan"), "0.5", True, None])
def test_a_wrong_fidelity(w: Any) -> None:
    network = random_network(CODEFORMER)
    with pytest.raises(ValueError, match=r"CodeFormer: w must be a number in \[0, 1\], not"):
        network(picture(16), w=w)


@pytest.mark.parametrize("name", list(SMALL))
def test_pictures_of_another_shape(name: str) -> None:
    network = random_network(SMALL[name])
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(0, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected (pictures|photos) of \(B, 3, "):
            network(wrong)
    size = getattr(SMALL[name], "size", 32)
    with pytest.raises(ValueError, match="floating-point type"):
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def test_wrong_noise() -> None:
    network = random_network(GFPGAN)
    x = picture(32)
    with pytest.raises(ValueError, match="noise must be 'stored' or maps, not 'file'"):
        network(x, noise="file")
    with pytest.raises(ValueError, match="expected maps of noise"):
        network(x, noise=[torch.zeros(1, 1, 4, 4)])
    with pytest.raises(ValueError, match="expected one seed per image"):
        network(x, seed=[1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CodeFormerConfig(fuse=(16,)), "fuse must be some of"),
        (lambda: CodeFormerConfig(width=100), "not divisible by 8 heads"),
        (lambda: CodeFormerConfig(size=500), "size must be a multiple of 32"),
        (lambda: CodeFormerConfig(ch=20), "ch must be a multiple of 32"),
        (lambda: GFPGANConfig(widths=(7, 8)), "widths must be even"),
        (lambda: GFPGANConfig(variant="v2"), "variant must be one of"),  # type: ignore[arg-type]
        (lambda: GPENConfig(widths=(8,)), "two levels"),
        (lambda: ParseNetConfig(classes=0), "classes must be an int"),
        (lambda: RetinaFaceConfig(width=30), "width must be a multiple of 4"),
        (lambda: RetinaFaceConfig(backbone="vgg"), "backbone must be one of"),  # type: ignore[arg-type]
    ],
)
def test_configurations_that_are_none(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
