"""CompVis's U-Net in plain steps, from the tensors of a file: loops over heads, one einsum per product.

It is written from the description of the original network, shares no code with `ldm_core`, and takes the raw
tensors in CompVis's layout. So a comparison tests the network, the key map and the order within tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]


def plain_unet(tensors: Tensors, params: Mapping[str, Any], x: Tensor, t: float, y: Any = None) -> Tensor:
    """The prediction for x (B, C, h, w) in float64. params: of the YAML's `unet_config`, without context."""
    tensors = {name: value.double() for name, value in tensors.items()}
    emb = _embedding(tensors, params["model_channels"], t, x.shape[0], y)
    per_level = params["num_res_blocks"] + 1
    h, skips = x.double(), []
    for i in range(len(params["channel_mult"]) * per_level):
        down = i > 0 and i % per_level == 0
        h = _entry(tensors, params, f"input_blocks.{i}.", h, emb, first="down" if down else "")
        skips.append(h)
    h = _entry(tensors, params, "middle_block.", h, emb)
    for i in range(len(skips)):
        h = _entry(tensors, params, f"output_blocks.{i}.", torch.cat([h, skips.pop()], dim=1), emb, up=True)
    h = F.silu(_norm(tensors, "out.0", h))
    return _conv(tensors, "out.2", h)


def _embedding(tensors: Tensors, width: int, t: float, rows: int, y: Any) -> Tensor:
    half = width // 2
    angles = [t * 10000.0 ** (-i / half) for i in range(half)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    emb = _linear(tensors, "time_embed.0", waves.repeat(rows, 1))
    emb = _linear(tensors, "time_embed.2", F.silu(emb))
    if "label_emb.weight" in tensors:
        emb = emb + torch.stack([tensors["label_emb.weight"][label] for label in y])
    if "label_emb.0.0.weight" in tensors:
        hidden = F.silu(_linear(tensors, "label_emb.0.0", y.double()))
        emb = emb + _linear(tensors, "label_emb.0.2", hidden)
    return emb


def _entry(
    tensors: Tensors, params: Any, at: str, h: Tensor, emb: Tensor, first: str = "", up: bool = False
) -> Tensor:
    """The modules of one entry, in order. first: what the first residual block does besides."""
    for j in range(3):
        name = f"{at}{j}"
        if f"{name}.in_layers.0.weight" in tensors:
            h = _residual(tensors, params, name, h, emb, "up" if up and j > 0 else first)
        elif f"{name}.qkv.weight" in tensors:
            h = _attention(tensors, params, name, h)
        elif f"{name}.op.weight" in tensors:
            h = _conv(tensors, f"{name}.op", h, stride=2)
        elif f"{name}.conv.weight" in tensors:
            h = _conv(tensors, f"{name}.conv", _doubled(h))
        elif f"{name}.weight" in tensors:
            h = _conv(tensors, name, h)
    return h


def _residual(tensors: Tensors, params: Any, name: str, x: Tensor, emb: Tensor, resample: str) -> Tensor:
    h = F.silu(_norm(tensors, f"{name}.in_layers.0", x))
    if resample == "down":
        h, x = _halved(h), _halved(x)
    elif resample == "up":
        h, x = _doubled(h), _doubled(x)
    h = _conv(tensors, f"{name}.in_layers.2", h)
    told = _linear(tensors, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    if params.get("use_scale_shift_norm"):
        width = h.shape[1]
        h = _norm(tensors, f"{name}.out_layers.0", h) * (1 + told[:, :width]) + told[:, width:]
    else:
        h = _norm(tensors, f"{name}.out_layers.0", h + told)
    h = _conv(tensors, f"{name}.out_layers.3", F.silu(h))
    if f"{name}.skip_connection.weight" in tensors:
        x = _conv(tensors, f"{name}.skip_connection", x)
    return x + h


def _attention(tensors: Tensors, params: Any, name: str, x: Tensor) -> Tensor:
    """qkv has 3C rows: q, k and v of head 0, then of head 1, and so on."""
    b, width, height, wide = x.shape
    size = params.get("num_head_channels", -1)
    heads = params["num_heads"] if size == -1 else width // size
    d = width // heads
    flat = _norm(tensors, f"{name}.norm", x).reshape(b, width, height * wide)
    weight, bias = tensors[f"{name}.qkv.weight"], tensors[f"{name}.qkv.bias"]
    qkv = torch.einsum("oc,bcn->bon", weight[:, :, 0], flat) + bias[None, :, None]
    results = []
    for head in range(heads):
        q, k, v = (qkv[:, (3 * head + part) * d : (3 * head + part + 1) * d] for part in range(3))
        scores = torch.einsum("bdn,bdm->bnm", q * d**-0.25, k * d**-0.25)
        results.append(torch.einsum("bnm,bdm->bdn", torch.softmax(scores, dim=-1), v))
    joined = torch.cat(results, dim=1)
    weight, bias = tensors[f"{name}.proj_out.weight"], tensors[f"{name}.proj_out.bias"]
    out = torch.einsum("oc,bcn->bon", weight[:, :, 0], joined) + bias[None, :, None]
    return x + out.reshape(x.shape)


def _norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(x.shape[0], 32, -1)
    mean, var = groups.mean(dim=2, keepdim=True), groups.var(dim=2, unbiased=False, keepdim=True)
    normal = ((groups - mean) / torch.sqrt(var + 1e-5)).reshape(x.shape)
    return normal * tensors[f"{name}.weight"][:, None, None] + tensors[f"{name}.bias"][:, None, None]


def _linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _conv(tensors: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.conv2d(x, weight, tensors[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def _halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
