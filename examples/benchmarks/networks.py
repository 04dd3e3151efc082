"""The networks that the benchmarks time: this package's, diffusers', transformers' and OpenVINO's.

All have the same random weights, which go through this package's key maps and diffusers' own converters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from openvino_peer import in_openvino
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ldm_core
from ldm_core import build
from ldm_core.config import SD1, AutoencoderConfig, LatentDiffusionConfig, TextEncoderConfig, UNetConfig
from ldm_core.nn.placement import placed

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.reference import random_model, reference_autoencoder, reference_text_encoder, reference_unet

SMALL = LatentDiffusionConfig(
    text_encoder=TextEncoderConfig(width=64, layers=2, heads=4),
    unet=UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, num_heads=4, context_dim=64),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),
    image_size=32,
)
MODELS = {"sd1": SD1, "small": SMALL}


class Called(nn.Module):
    """A network together with how it is called, taking and giving plain tensors."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.network, *inputs)


@dataclass(frozen=True)
class Part:
    """One of a model's networks: where it is here, and how both are called."""

    ours: Callable[[Any], nn.Module]
    call: Callable[..., Tensor]
    reference: Callable[[Any], nn.Module]
    call_reference: Callable[..., Tensor]


PARTS = {
    "unet": Part(
        lambda model: model.unet,
        lambda net, x, t, context: net(x, t, context),
        reference_unet,
        lambda net, x, t, context: net(x, t, encoder_hidden_states=context, return_dict=False)[0],
    ),
    "decoder": Part(
        lambda model: model.autoencoder,
        lambda net, z: net.decode(z),
        reference_autoencoder,
        lambda net, z: net.decode(z, return_dict=False)[0],
    ),
    "encoder": Part(
        lambda model: model.autoencoder,
        lambda net, images: net.encode(images).mean,
        reference_autoencoder,
        lambda net, images: net.encode(images, return_dict=False)[0].mean,
    ),
    "text": Part(
        lambda model: model.text_encoder,
        lambda net, tokens: net(tokens),
        reference_text_encoder,
        lambda net, tokens: net(input_ids=tokens).last_hidden_state,
    ),
}


# Several copies of SD1 would be too much, except where one candidate's memory is what is measured.
filled = random_model if "--peak" in sys.argv else cache(random_model)


def ours(part: Part, config: LatentDiffusionConfig, dtype: str, **optimized: bool) -> Called:
    network = part.ours(build(config, "meta"))
    weights = part.ours(filled(config)).state_dict()
    kind = getattr(torch, dtype)
    network.load_state_dict({n: placed(w, "cpu", kind) for n, w in weights.items()}, assign=True)
    network.requires_grad_(False)
    if optimized:
        ldm_core.optimize(network, **optimized)
    return Called(network, part.call)


@cache
def reference(part: Part, config: LatentDiffusionConfig, dtype: str) -> Called:
    network = part.reference(filled(config))
    return Called(network.to(getattr(torch, dtype)), part.call_reference)


def candidates(
    part: Part,
    config: LatentDiffusionConfig,
    dtype: str,
    inputs: tuple[Tensor, ...],
    *,
    compiled: bool = False,
    with_openvino: bool = False,
    peer: str = "diffusers",
) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """Named makers, each of a function without arguments that computes the network's output for `inputs`."""

    def bound(make: Callable[[], Callable[..., Tensor]]) -> Callable[[], Callable[[], Tensor]]:
        return lambda: partial(make(), *inputs)

    named = {"ldm_core": bound(lambda: ours(part, config, dtype))}
    if part not in (PARTS["decoder"], PARTS["encoder"]):  # where `optimize` has nothing to gain
        named["ldm_core, optimized"] = bound(lambda: ours(part, config, dtype, approximate=False))
    if dtype == "bfloat16" and part is PARTS["unet"]:
        named["ldm_core, approximate"] = bound(lambda: ours(part, config, dtype, approximate=True))
    named[peer] = bound(lambda: reference(part, config, dtype))
    if compiled:
        named[f"{peer}, compiled"] = bound(lambda: torch.compile(reference(part, config, dtype)))
    if with_openvino:
        named["OpenVINO"] = lambda: in_openvino(reference(part, config, "float32"), dtype, inputs)
    return named


def operations(part: Part, config: LatentDiffusionConfig, inputs: tuple[Tensor, ...]) -> int:
    """Additions and multiplications of the matrix products and convolutions, as the formulas have them."""
    model = build(config, "meta")
    ldm_core.set_attention(model, "math")
    meta = [x.to("meta", torch.float32) if x.is_floating_point() else x.to("meta") for x in inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        part.call(part.ours(model), *meta)
    return counter.get_total_flops()


def noise(*shape: int, dtype: str = "float32") -> Tensor:
    """Standard normal numbers, the same in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
