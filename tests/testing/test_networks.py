"""`check_unet`, `check_autoencoder`, `check_text_encoder`: every way to break one is told in words.

Broken parts come in tables. Each part is the smallest change of one that works, so that only the clause in
question can catch it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.contracts import AUTOENCODER, AUTOENCODER_VQ, TEXT, UNET, broken, expect_told, told
from torch import Tensor, nn

from ldm_core.attention import attention_layers
from ldm_core.autoencoder import AutoencoderKL, AutoencoderVQ, DiagonalGaussian
from ldm_core.testing import check_autoencoder, check_text_encoder, check_unet
from ldm_core.text_encoder import CLIPTextEncoder
from ldm_core.unet import UNet

# --- broken U-Nets --------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A small U-Net with one method to override, so that only what is overridden can break."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet(UNET)
        self.calls = 0

    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, context)


class IgnoresT(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, 3, context)


class IgnoresContext(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, torch.zeros_like(context))


class Blank(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return 0 * self.unet(x, t, context)


class BatchNorm(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.norm(self.unet(x, t, context))


class BatchMean(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x - x.mean(), t, context)


class FirstContext(Wrapped):
    """Takes the prompt of the first image for all."""

    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, context[:1].expand_as(context))


class Dropout(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return nn.functional.dropout(self.unet(x, t, context), 0.1, self.training)


class AlwaysFloat32(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, context).float()


class OnlyFloat32(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x.float(), t, context.float())


class OnlyTensors(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t.reshape(-1), context)


class OnlyInts(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, int(t if isinstance(t, int) else t[0]), context)


class OneSize(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x.reshape(-1, 4, 2, 4), t, context)


class InPlace(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x.mul_(0.5), t, context)


class Counting(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        self.calls += 1
        return self.unet(x, t, context) / self.calls


class StaticOutput(Wrapped):
    """Returns the same memory every time, as a captured CUDA graph does."""

    out = torch.empty(0)

    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        result = self.unet(x, t, context)
        if self.out.shape != result.shape or self.out.dtype != result.dtype:
            self.out = result
        return self.out.copy_(result)


class MemoryOrder(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), t, context)


class Elsewhere(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, context).to("meta")


class Infinite(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Tensor:
        return self.unet(x, t, context) / 0


class NoTensor(Wrapped):
    def forward(self, x: Tensor, t: Any, context: Tensor) -> Any:
        return {"sample": self.unet(x, t, context)}


BROKEN_UNETS = [
    broken("no tensor", NoTensor, "to return a tensor; got a dict"),
    broken("infinite", Infinite, "to return finite values; got 96 infinite or NaN"),
    broken("elsewhere", Elsewhere, "on cpu; got (3, 4, 2, 4) of torch.float32 on meta"),
    broken("one size", OneSize, "sizes: multiples of 2"),
    broken("only float32", OnlyFloat32, "dtype torch.bfloat16", "RuntimeError"),
    broken("always float32", AlwaysFloat32, "dtype torch.bfloat16", "got (3, 4, 2, 2) of torch.float32"),
    broken("only tensors", OnlyTensors, "AttributeError: 'int' object"),
    broken(
        "only ints",
        OnlyInts,
        "timesteps",
        "row 2 of a batch with timesteps [0, 500, 999] to equal the result for t=999",
    ),
    broken("in place", InPlace, "purity", "not to modify x"),
    broken(
        "batch norm",
        BatchNorm,
        "not to modify the part's own weights and buffers",
        "changes of norm.running_mean",
        "training mode",
        "batch independence",
    ),
    broken("counting", Counting, "replay", "equal arguments to return equal results"),
    broken("static output", StaticOutput, "not to change when others are computed"),
    broken(
        "dropout",
        Dropout,
        "random numbers",
        "another torch.manual_seed (the module is in training mode: call .eval()",
    ),
    broken("batch mean", BatchMean, "batch independence", "row 0 of"),
    broken("first context", FirstContext, "batch independence", "row 1 of"),
    broken("memory order", MemoryOrder, "strides", "non-contiguous arguments"),
    broken("ignores t", IgnoresT, "dependence", "to depend on t;"),
    broken("ignores context", IgnoresContext, "dependence", "to depend on the context"),
    broken("blank", Blank, "dependence", "zeros only"),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("part", "words"), BROKEN_UNETS)
def test_a_broken_unet_is_told(part: type[Wrapped], words: tuple[str, ...]) -> None:
    expect_told(told(check_unet, part(), UNET, tokens=7), words)


def test_a_dropout_that_is_off_is_none() -> None:
    check_unet(Dropout().eval(), UNET, tokens=7)


# --- broken autoencoders --------------------------------------------------------------------------------


class Coder(nn.Module):
    """A small autoencoder whose results are changed by two functions."""

    def __init__(
        self, posterior: Any = lambda p: p, image: Any = lambda x: x, before: Any = lambda x: x
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = AutoencoderKL(AUTOENCODER)
        self.posterior, self.image, self.before = posterior, image, before

    def encode(self, images: Tensor) -> Any:
        return self.posterior(self.parts.encode(self.before(images)))

    def decode(self, z: Tensor) -> Tensor:
        return self.image(self.parts.decode(z))


def gaussian(**changes: Any) -> Callable[[DiagonalGaussian], DiagonalGaussian]:
    """A posterior like the real one but for some methods or properties."""

    def make(posterior: DiagonalGaussian) -> DiagonalGaussian:
        members = {k: property(v) if k in ("std", "mean") else v for k, v in changes.items()}
        return type("Posterior", (DiagonalGaussian,), members)(posterior.mean, posterior.logvar)

    return make


def sample_of_one_stream(self: Any, generator: Any = None) -> Tensor:
    first = generator[0] if isinstance(generator, list) else generator
    return self.mean + self.std * torch.randn(self.mean.shape, generator=first)


BROKEN_AUTOENCODERS = [
    broken(
        "transposed",
        Coder(image=lambda x: x.transpose(2, 3)),
        "decode(z of 2x3) to return (3, 3, 4, 6)",
        "6, 4)",
    ),
    broken(
        "no posterior",
        Coder(posterior=lambda p: p.mean),
        "encode: shape",
        "TypeError: encode must give a DiagonalGaussian",
        "not (3, 4, 2, 3)",
    ),
    broken(
        "negative std",
        Coder(posterior=gaussian(std=lambda s: -torch.exp(0.5 * s.logvar))),
        "std to be positive",
        "exp(logvar / 2)",
    ),
    broken("variance as std", Coder(posterior=gaussian(std=lambda s: s.var)), "std to be exp(logvar / 2)"),
    broken("mode", Coder(posterior=gaussian(mode=lambda s: s.mean + s.std)), "mode() to equal the mean"),
    broken(
        "sample scaled by the variance",
        Coder(
            posterior=gaussian(sample=lambda s, g=None: s.mean + 3 * (DiagonalGaussian.sample(s, g) - s.mean))
        ),
        "(sample - mean) / std to be standard normal",
        "a standard deviation of 3",
    ),
    broken(
        "no generator",
        Coder(posterior=gaussian(sample=lambda s, g=None: s.mean + s.std * torch.randn_like(s.mean))),
        "to repeat with generators of the same seeds",
        "not to use torch's global random numbers",
    ),
    broken(
        "one stream for all",
        Coder(posterior=gaussian(sample=sample_of_one_stream)),
        "row 1 to depend on the generator of row 1 alone",
    ),
    broken("clamps in place", Coder(before=lambda x: x.mul_(0.9)), "purity", "not to modify images"),
    broken("batch statistics", Coder(image=lambda x: x / x.abs().max()), "row 0 of decode(z of 2x3)"),
    broken("batch statistics in", Coder(before=lambda x: x - x.mean()), "row 0 of encode(images"),
    broken(
        "float32", Coder(image=lambda x: x.float()), "decode: shape, in torch.bfloat16", "got (3, 3, 4, 6) of"
    ),
    broken("blank", Coder(image=lambda x: 0 * x + 1), "decode(z of 2x3) to depend on its z"),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("part", "words"), BROKEN_AUTOENCODERS)
def test_a_broken_autoencoder_is_told(part: Coder, words: tuple[str, ...]) -> None:
    expect_told(told(check_autoencoder, part, AUTOENCODER), words)


class Quantised(AutoencoderVQ):
    """A small VQ autoencoder whose results are changed by two functions."""

    def __init__(self, posterior: Any = lambda p: p, codes: Any = lambda z, k: (z, k)) -> None:
        torch.manual_seed(0)
        super().__init__(AUTOENCODER_VQ)
        nn.init.normal_(self.codebook)
        self.posterior, self.changed = posterior, codes

    def encode(self, images: Tensor) -> Any:
        return self.posterior(super().encode(images))

    def quantize(self, h: Tensor) -> Any:
        return self.changed(*super().quantize(h))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        broken(
            "latents alone",
            Quantised(lambda p: p.mode()),
            "TypeError: encode must give a PointMass",
            "(3, 3, 2",
        ),
        broken(
            "noise",
            Quantised(lambda p: DiagonalGaussian(p.mode(), torch.zeros_like(p.mode()))),
            "sample(generators) to equal mode()",
        ),
        broken("int32", Quantised(codes=lambda z, k: (z, k.int())), "indices (3, 2, 3) of torch.int64"),
        broken(
            "not codes", Quantised(codes=lambda z, k: (z / 2, k)), "nearest codes of codes to be themselves"
        ),
    ],
)
def test_a_broken_vq_autoencoder_is_told(part: Quantised, words: tuple[str, ...]) -> None:
    expect_told(told(check_autoencoder, part, AUTOENCODER_VQ, dtypes=[torch.float32]), words)


def test_a_reconstruction_can_be_demanded() -> None:
    check_autoencoder(Coder(), AUTOENCODER)
    message = told(check_autoencoder, Coder(), AUTOENCODER, reconstruction=0.1)
    expect_told(message, ("inverse", "decode(encode(images).mode()) to equal the images within 0.1 (RMS)"))


# --- broken text encoders -------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, before: Any = lambda tokens: tokens, after: Any = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = CLIPTextEncoder(TEXT)
        self.before, self.after = before, after

    def forward(self, tokens: Tensor) -> Tensor:
        return self.after(self.parts(self.before(tokens)))


def without_mask() -> Encoder:
    encoder = Encoder()
    for _, layer in attention_layers(encoder):
        layer.causal = False
    return encoder


class BagOfWords(Encoder):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.parts.token_embedding(tokens).cumsum(dim=1)


def one_token_ahead(x: Tensor) -> Tensor:
    return x + 0.1 * torch.cat([x[:, 1:], x[:, -1:]], dim=1)


BROKEN_ENCODERS = [
    broken("not causal", without_mask(), "causality", "the vectors before position 6 not to depend on it"),
    broken("one ahead", Encoder(after=one_token_ahead), "before position 1 not", "before position 11 not"),
    broken("width", Encoder(after=lambda x: x[..., :16]), "to return (3, 12, 32)", "got (3, 12, 16)"),
    broken("pooled", Encoder(after=lambda x: x[:, -1]), "to return (3, 12, 32)", "got (3, 32)"),
    broken(
        "dtype", Encoder(after=lambda x: x.float()), "in torch.bfloat16", "got (3, 12, 32) of torch.float32"
    ),
    broken("table too small", Encoder(before=lambda t: t + 1), "got IndexError"),
    broken("writes into tokens", Encoder(before=lambda t: t.clamp_(max=50)), "not to modify tokens"),
    broken("no order", BagOfWords(), "order", "to change when the two are swapped"),
    broken(
        "batch mean", Encoder(after=lambda x: x - x.mean(0, keepdim=True)), "batch independence", "row 0 of"
    ),
    broken("deaf", Encoder(before=lambda t: torch.zeros_like(t)), "to depend on the tokens"),
    broken("noise", Encoder(after=lambda x: x + 0.01 * torch.randn_like(x)), "random numbers"),
]


@pytest.mark.parametrize(("part", "words"), BROKEN_ENCODERS)
def test_a_broken_text_encoder_is_told(part: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_text_encoder, part, TEXT), words)


def test_an_encoder_that_looks_both_ways_can_be_declared() -> None:
    check_text_encoder(without_mask(), TEXT, causal=False)
