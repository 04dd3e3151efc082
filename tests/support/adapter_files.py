"""Adapter files as the world's tools name them, and the weights that they stand for.

The names come from the modules of diffusers' and transformers' networks, and the changes of weights from
the papers' formulas written out here in numpy: nothing of this package's tables or arithmetic is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from support.configs import SMALL_SD1
from support.reference import random_model, reference_text_encoder, reference_unet, relative_error
from torch import Tensor, nn
from torch.func import functional_call

from ldm_core.config import LatentDiffusionConfig
from ldm_core.model import LatentDiffusion

Tensors = dict[str, Tensor]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
KOHYA_UNET = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
KOHYA_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CONVOLUTIONS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "conv_in",
    "conv_out",
)


# It has a layer of each kind.
TINY = replace(
    SMALL_SD1,
    unet=replace(SMALL_SD1.unet, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1, 2)),
)


class Pair:
    """A model of this package and, where they are wanted, the same networks of the reference libraries."""

    def __init__(self, config: LatentDiffusionConfig, references: bool = True) -> None:
        self.model: LatentDiffusion = random_model(config)
        self.unet: Any = reference_unet(self.model) if references else None
        self.text_encoder: Any = reference_text_encoder(self.model) if references else None
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(1, config.unet.in_channels, 8, 8, generator=generator)
        self.context = torch.randn(1, 9, config.unet.context_dim, generator=generator)
        self.tokens = torch.randint(0, 49408, (1, 20), generator=generator)
        self.before = self.ours()

    def copies(self) -> tuple[Any, Any]:
        return copy.deepcopy(self.unet), copy.deepcopy(self.text_encoder)

    @torch.no_grad()
    def ours(self) -> tuple[Tensor, Tensor]:
        x = self.x.to(self.model.dtype)
        context = self.context.to(self.model.dtype)
        return self.model.unet(x, 500, context), self.model.text_encoder(self.tokens)

    @torch.no_grad()
    def theirs(self, unet: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
        hidden = text_encoder(self.tokens).last_hidden_state
        return unet(self.x, 500, self.context).sample, hidden

    def merged(
        self, unet: Mapping[str, Tensors], text: Mapping[str, Tensors] | None = None, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What the reference networks give with the changes added to their weights."""

        def call(network: nn.Module, adapter: Mapping[str, Tensors]) -> Any:
            return partial(functional_call, network, merged_weights(network, adapter, scale))

        unet_call, text_call = call(self.unet, unet), call(self.text_encoder, text or {})
        return self.theirs(lambda *inputs: unet_call(inputs), lambda tokens: text_call((tokens,)))

    def weights(self) -> Tensors:
        """A copy of every parameter."""
        return {
            f"{part}.{name}": p.detach().clone()
            for part, module in self.model.modules.items()
            for name, p in module.named_parameters()
        }


def largest_error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    return max(relative_error(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True))


def same_bits(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def layers(network: nn.Module, ends: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """{name: shape of the weight} of the modules whose names end so."""
    found = {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and ("." + name).endswith(tuple("." + end for end in ends))
    }
    assert found
    return found


def draw(generator: torch.Generator, *shape: int, fan: int = 1) -> Tensor:
    """Small enough for the networks to stay well conditioned, large enough to change their outputs much."""
    return 0.5 * torch.randn(shape, generator=generator) * fan**-0.5


def lora(shape: tuple[int, ...], generator: torch.Generator, *, rank: int = 4, core: bool = False) -> Tensors:
    """A layer's LoRA, as kohya-ss and LyCORIS store it."""
    outputs, inputs, *kernel = shape
    ones = [1] * len(kernel)
    up = draw(generator, outputs, rank, *ones, fan=rank)
    if core:
        down = draw(generator, rank, inputs, *ones, fan=inputs)
        mid = draw(generator, rank, rank, *kernel, fan=9 * rank)
        return {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    fan = int(np.prod([inputs, *kernel]))
    return {"lora_down.weight": draw(generator, rank, inputs, *kernel, fan=fan), "lora_up.weight": up}


def loha(shape: tuple[int, ...], generator: torch.Generator, *, rank: int = 3, core: bool = False) -> Tensors:
    outputs, inputs, *kernel = shape
    fan = int(np.prod([inputs, *kernel]))
    tensors = {}
    for i in (1, 2):
        if core and kernel:
            tensors[f"hada_t{i}"] = draw(generator, rank, rank, *kernel, fan=rank)
            tensors[f"hada_w{i}_a"] = draw(generator, rank, outputs)
            tensors[f"hada_w{i}_b"] = draw(generator, rank, inputs, fan=inputs if i == 1 else 1)
        else:
            tensors[f"hada_w{i}_a"] = draw(generator, outputs, rank)
            tensors[f"hada_w{i}_b"] = draw(generator, rank, fan, fan=fan if i == 1 else 1)
    return tensors


def halves(n: int) -> tuple[int, int]:
    """The factors of n that lie closest to each other, the smaller first."""
    small = max(k for k in range(1, int(n**0.5) + 1) if n % k == 0)
    return small, n // small


def lokr(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    rank: int = 2,
    first: str = "whole",
    second: str = "product",
) -> Tensors:
    """Each factor "whole", a "product" or, the second of a convolution, a product with a "core"."""
    (a, b), (c, d), kernel = halves(shape[0]), halves(shape[1]), list(shape[2:])
    tensors = {}
    if first == "whole":
        tensors["lokr_w1"] = draw(generator, a, c)
    else:
        tensors |= {"lokr_w1_a": draw(generator, a, rank), "lokr_w1_b": draw(generator, rank, c, fan=rank)}
    fan = int(np.prod([shape[1], *kernel]))
    if second == "whole":
        tensors["lokr_w2"] = draw(generator, b, d, *kernel, fan=fan)
    elif second == "core" and kernel:
        tensors["lokr_t2"] = draw(generator, rank, rank, *kernel, fan=rank)
        tensors |= {"lokr_w2_a": draw(generator, rank, b), "lokr_w2_b": draw(generator, rank, d, fan=fan)}
    else:
        flat = d * int(np.prod(kernel))
        tensors |= {"lokr_w2_a": draw(generator, b, rank), "lokr_w2_b": draw(generator, rank, flat, fan=fan)}
    return tensors


def change(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The change of the weight that a layer's tensors stand for, without alpha: the formulas, in float64."""
    t = {name.removesuffix(".weight"): x.double().numpy() for name, x in tensors.items()}
    inputs, kernel = shape[1], shape[2:]
    taps = [(y, x) for y in range(kernel[0]) for x in range(kernel[1])] if kernel else [()]
    result = np.zeros(shape)
    for tap in taps:  # each position of the kernel is a matrix of its own
        at = (slice(None), slice(None), *tap)

        def matrix(name: str, columns: int, at: Any = at, tap: Any = tap) -> np.ndarray:
            """One position of a factor that may be stored flat, as (r, columns * k)."""
            value = t[name]
            if value.ndim == 2 and kernel:
                value = value.reshape(len(value), columns, *kernel)
            return value[at] if value.ndim > 2 else value

        if "diff" in t:
            result[at] = t["diff"][at]
        elif "lora_mid" in t:
            result[at] = t["lora_up"][:, :, 0, 0] @ t["lora_mid"][at] @ t["lora_down"][:, :, 0, 0]
        elif "lora_up" in t:
            up = t["lora_up"]
            result[at] = up.reshape(up.shape[:2]) @ matrix("lora_down", inputs)
        elif "hada_t1" in t:
            first, second = (t[f"hada_w{i}_a"].T @ t[f"hada_t{i}"][at] @ t[f"hada_w{i}_b"] for i in (1, 2))
            result[at] = first * second
        elif "hada_w1_a" in t:
            first, second = (t[f"hada_w{i}_a"] @ matrix(f"hada_w{i}_b", inputs) for i in (1, 2))
            result[at] = first * second
        else:
            w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
            columns = inputs // w1.shape[1]
            if "lokr_w2" in t:
                w2 = matrix("lokr_w2", columns)
            elif "lokr_t2" in t:
                w2 = t["lokr_w2_a"].T @ t["lokr_t2"][at] @ t["lokr_w2_b"]
            else:
                w2 = t["lokr_w2_a"] @ matrix("lokr_w2_b", columns)
            result[at] = np.kron(w1, w2)
    return result


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    for name, axis in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
        if name in tensors:
            return tensors[name].shape[axis]
    return None


Maker = Callable[[tuple[int, ...], torch.Generator], Tensors]


def make(shapes: Mapping[str, tuple[int, ...]], maker: Maker = lora, *, seed: int = 0) -> dict[str, Tensors]:
    """{layer: its tensors}, with another alpha for each."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for number, (name, shape) in enumerate(shapes.items()):
        tensors = maker(shape, generator)
        if rank_of(tensors) is not None:
            tensors["alpha"] = torch.tensor(0.5 + number % 3)
        made[name] = tensors
    return made


def kohya_unet(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def kohya_text(name: str) -> str:
    return "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_")


def flat(adapter: Mapping[str, Tensors], named: Callable[[str], str]) -> Tensors:
    """The tensors of a file, with the layers named so."""
    return {f"{named(layer)}.{name}": x for layer, tensors in adapter.items() for name, x in tensors.items()}


def kohya(unet: Mapping[str, Tensors], text: Mapping[str, Tensors] | None = None) -> Tensors:
    return flat(unet, kohya_unet) | flat(text or {}, kohya_text)


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, path, metadata)
    return path


def merged_weights(network: nn.Module, adapter: Mapping[str, Tensors], scale: float = 1.0) -> Tensors:
    """The weights of a reference network that an adapter changes, with their changes."""
    merged = {}
    for name, tensors in adapter.items():
        weight: Any = network.get_submodule(name).weight
        rank = rank_of(tensors)
        factor = scale * (1.0 if rank is None else float(tensors.get("alpha", rank)) / rank)
        factors = {key: x for key, x in tensors.items() if key != "alpha"}
        merged[f"{name}.weight"] = weight + torch.from_numpy(
            factor * change(factors, tuple(weight.shape))
        ).to(weight)
    return merged
