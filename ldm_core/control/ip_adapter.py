"""Image prompts: cross-attentions that also attend to the tokens of a picture.

IP-Adapter (Ye et al. 2023, arXiv:2308.06721, equation 5) adds a second attention with the same queries:

    out = to_out(attention(q, K text, V text) + scale * attention(q, K' image, V' image))

Hooks on each layer do this while tokens are in use, and nothing otherwise.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.preprocessing import preprocess
from ldm_core.condition import Condition
from ldm_core.control.image_projection import IPAdapter
from ldm_core.unet.network import UNet
from ldm_core.unet.transformer import TransformerBlock

Scale = float | Mapping[str, float]
_HANDLES = "_image_adapters"  # attribute of a U-Net that lists its handles


def cross_attentions(unet: UNet) -> dict[str, MultiHeadAttention]:
    """The layers that attend to the context, by name, in the order of IP-Adapter's files."""
    return {
        f"{part}.{name}.attn2": module.attn2
        for part in ("down", "up", "mid")
        for name, module in getattr(unet, part).named_modules()
        if isinstance(module, TransformerBlock)
    }


def find_unet(model: Any) -> UNet | None:
    """The U-Net of a model, also inside of a wrapper such as `DeepCache`."""
    root = getattr(model, "unet", model)
    modules = root.modules() if isinstance(root, nn.Module) else ()
    return next((module for module in modules if isinstance(module, UNet)), None)


class ImagePromptHandle:
    """An IP-Adapter on a model, returned by `apply_ip_adapter`.

    layers: the names of the attention layers that it acts in, for scales by layer.
    """

    def __init__(self, name: str, network: IPAdapter, unet: UNet, clip: CLIPImageEncoder | None) -> None:
        self.name, self.network, self.clip = name, network, clip
        self._unet = unet
        self._now = threading.local()
        layers = cross_attentions(unet)
        self.layers = tuple(layers)
        self._hooks: list[Any] = []
        for number, (layer_name, layer) in enumerate(layers.items()):
            hook = _LayerHook(self, number, layer_name, layer)
            self._hooks.append(layer.to_q.register_forward_hook(hook.take_queries))
            self._hooks.append(layer.to_out.register_forward_pre_hook(hook.add_image))
        vars(unet).setdefault(_HANDLES, []).append(self)

    def project(self, embeddings: Tensor) -> Tensor:
        """Image embeddings to tokens (B, N, context_dim).

        embeddings: of a base adapter (B, D), CLIP's projected vectors; of the others (B, M, D), CLIP's hidden
        states before its last block. Raises ValueError for another shape.
        """
        weight = next(self.network.parameters())
        tokens: Tensor = self.network(embeddings.to(weight))
        return tokens

    def encode(self, images: Any) -> Tensor:
        """The tokens of pictures: one or several PIL images, or a tensor in [0, 1]; (B, N, context_dim).

        Raises ValueError without the CLIP image encoder that the adapter was made for.
        """
        clip = self._needed_clip("a picture")
        return self.project(self._embeddings(preprocess(images, clip.config, crop="transformers")))

    def unconditional(self) -> Tensor:
        """The tokens of no picture, (1, N, context_dim), for the unconditional half of guidance."""
        if self.network.config.kind == "base":
            return self.project(torch.zeros(1, self.network.config.embedding_dim))
        size = self._needed_clip("guidance").config.image_size
        return self.project(self._embeddings(torch.zeros(1, 3, size, size)))

    def _embeddings(self, pixels: Tensor) -> Tensor:
        assert self.clip is not None
        pixels = pixels.to(next(self.clip.parameters()))
        if self.network.config.kind == "base":
            embeddings: Tensor = self.clip(pixels)
            return embeddings
        return self.clip.hidden_states(pixels, skip=1)

    def _needed_clip(self, what: str) -> CLIPImageEncoder:
        if self.clip is None:
            raise ValueError(
                f"{self.name} needs the CLIP image encoder that it was made for, for {what}: "
                "apply_ip_adapter(model, path, clip=…)"
            )
        return self.clip

    @contextmanager
    def using(self, tokens: Tensor, scale: Scale = 1.0) -> Iterator[None]:
        """Attend to these tokens in the calls of the U-Net inside of the context, by this thread.

        tokens: (B, N, context_dim) from `project`, one row per row of x, or fewer that are repeated.
        scale: one number, or numbers by the names in `layers`, where missing ones are 0.
        Raises ValueError for other values, and after `remove`.
        """
        if not self._hooks:
            raise ValueError(f"{self.name} was removed from its model: call apply_ip_adapter again")
        width = self.network.config.context_dim
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[2] != width:
            raise ValueError(f"expected tokens of (B, N, {width}) from handle.project, not {_what(tokens)}")
        before = getattr(self._now, "value", None)
        self._now.value = (tokens, self.scales(scale))
        try:
            yield
        finally:
            self._now.value = before

    def scales(self, scale: Scale) -> tuple[float, ...]:
        """The scale of each layer. Raises ValueError for unknown layers and numbers that are not finite."""
        by_layer = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(self.layers, scale)
        unknown = [name for name in by_layer if name not in self.layers]
        if unknown:
            raise ValueError(f"no layer {unknown[0]!r:.60}; expected names such as {self.layers[0]}")
        for value in by_layer.values():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"an image prompt's scale must be a finite number, not {value!r:.40}")
        return tuple(float(by_layer.get(name, 0.0)) for name in self.layers)

    def now(self) -> tuple[Tensor, tuple[float, ...]] | None:
        """The tokens in use in this thread, and the scale of each layer."""
        value: tuple[Tensor, tuple[float, ...]] | None = getattr(self._now, "value", None)
        return value

    def remove(self) -> None:
        """Take the adapter off the model, which then is as it was. Can be called more than once."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        handles: list[Any] = vars(self._unet).get(_HANDLES, [])
        if self in handles:
            handles.remove(self)
        if not handles:
            vars(self._unet).pop(_HANDLES, None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_now"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._now = threading.local()

    def __repr__(self) -> str:
        config = self.network.config
        return f"<{self.name}: IP-Adapter ({config.kind}) on {len(self.layers)} layers of the U-Net>"


class _LayerHook:
    """Keeps the queries of a layer, and adds the attention to the image tokens before its last projection."""

    def __init__(self, handle: ImagePromptHandle, number: int, name: str, layer: MultiHeadAttention) -> None:
        self.handle, self.number, self.name, self.layer = handle, number, name, layer
        self.queries: dict[int, Tensor] = {}  # by thread

    def take_queries(self, module: nn.Module, args: Any, output: Tensor) -> None:
        now = self.handle.now()
        if now is not None and now[1][self.number] != 0:
            self.queries[threading.get_ident()] = output

    def add_image(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        now = self.handle.now()
        if now is None or now[1][self.number] == 0:
            return None
        (text,), (tokens, scales) = args, now
        q = self.queries.pop(threading.get_ident())
        tokens = _repeated(tokens, len(q)).to(q)
        network, heads = self.handle.network, self.layer.heads
        k, v = network.to_k[self.number](tokens), network.to_v[self.number](tokens)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        image = self.layer.attention(q, k, v).transpose(1, 2).flatten(2)
        return (text + scales[self.number] * image,)


def _repeated(tokens: Tensor, rows: int) -> Tensor:
    if rows % len(tokens):
        raise ValueError(
            f"expected image tokens of one row, or of one per row of x ({rows}), got {len(tokens)}"
        )
    return tokens.repeat(rows // len(tokens), 1, 1) if len(tokens) != rows else tokens


@dataclass(frozen=True)
class ImagePrompt:
    """The image prompt of a sampling run: tokens for each side of guidance, one row for all images."""

    handle: ImagePromptHandle
    tokens: Tensor
    unconditional: Tensor
    scale: Scale

    @contextmanager
    def used_for(self, condition: Condition, rows: int) -> Iterator[None]:
        """Use the tokens in the evaluation of these rows, each as its side of guidance needs."""
        sides = condition.sides or tuple((row, True) for row in range(rows))
        chosen = [self.tokens if side else self.unconditional for _, side in sides]
        with self.handle.using(torch.cat(chosen), self.scale):
            yield


def prepare_image_prompt(unet: Any, picture: Any, scale: Scale, guided: bool) -> ImagePrompt | None:
    """The image prompt of a run; None without a picture.

    picture: one or several pictures, or embeddings as `ImagePromptHandle.project` takes them; the tokens of
        several are concatenated. guided: whether there is an unconditional half.
    Raises ValueError without exactly one adapter on the U-Net, and for other values.
    """
    if picture is None:
        return None
    network = find_unet(unet)
    handles: Sequence[ImagePromptHandle] = [] if network is None else vars(network).get(_HANDLES, [])
    if len(handles) != 1:
        have = (
            "no IP-Adapter: call apply_ip_adapter(model, …) first" if not handles else "several IP-Adapters"
        )
        raise ValueError(f"image_prompt needs one IP-Adapter on the model, which has {have}")
    (handle,) = handles
    handle.scales(scale)
    config = handle.network.config
    dims = 2 if config.kind == "base" else 3
    given = isinstance(picture, Tensor) and picture.ndim == dims and picture.shape[-1] == config.embedding_dim
    tokens = handle.project(picture) if given else handle.encode(picture)
    count = len(tokens)
    tokens = tokens.flatten(0, 1)[None]  # (pictures, N, width) -> (1, pictures * N, width)
    unconditional = handle.unconditional().repeat(1, count, 1) if guided else tokens
    return ImagePrompt(handle, tokens, unconditional, scale)


def _what(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
