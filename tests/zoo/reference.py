"""The networks of CompVis's and Stability AI's latent diffusion in plain steps, from the tensors of a file.

Written from the description of the originals. It shares no code with `ldm_core`, takes tensors by their
original names and hyperparameters as in the YAML files, and computes in float64. Every function reads the
tensors that the hyperparameters call for, and `Tensors.unused` lists those that nothing has read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Params = Mapping[str, Any]


class Tensors:
    """The tensors of a file below a prefix, in float64."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", used: set[str] | None = None) -> None:
        self.tensors, self.prefix = tensors, prefix
        self.used: set[str] = set() if used is None else used

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(self.prefix + name)
        return self.tensors[self.prefix + name].double()

    def at(self, prefix: str) -> Tensors:
        return Tensors(self.tensors, self.prefix + prefix, self.used)

    def unused(self) -> set[str]:
        return {name for name in self.tensors if name.startswith(self.prefix)} - self.used


def linear(w: Tensors, name: str, x: Tensor, bias: bool = True) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, w[f"{name}.weight"])
    return y + w[f"{name}.bias"] if bias else y


def conv(w: Tensors, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    kernel = w[f"{name}.weight"]
    padding = kernel.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride, padding)


def group_norm(w: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def layer_norm(w: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """One head: q (B, N, d), k and v (B, M, d)."""
    scores = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[-1])
    if causal:
        n = scores.shape[-1]
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
    return torch.einsum("bnm,bmd->bnd", scores.softmax(dim=-1), v)


def multi_head(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Head i has the features i d … (i + 1) d."""
    d = q.shape[-1] // heads
    parts = [slice(i * d, (i + 1) * d) for i in range(heads)]
    return torch.cat([attend(q[..., p], k[..., p], v[..., p], causal) for p in parts], dim=-1)


def sinusoids(t: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): cosines, then sines."""
    half = width // 2
    angles = torch.stack([t.double() * 10000.0 ** (-i / half) for i in range(half)], dim=1)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


# The U-Net


def unet(
    w: Tensors, p: Params, x: Tensor, t: float, context: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """w: below `model.diffusion_model.`; p: `unet_config.params`. y: labels (B,) or vectors (B, D)."""
    levels, blocks, width = len(p["channel_mult"]), p["num_res_blocks"], p["model_channels"]
    emb = sinusoids(torch.full((len(x),), t, dtype=torch.float64), width)
    emb = linear(w, "time_embed.2", F.silu(linear(w, "time_embed.0", emb)))
    if p.get("num_classes") == "sequential":
        assert y is not None
        emb = emb + linear(w, "label_emb.0.2", F.silu(linear(w, "label_emb.0.0", y.double())))
    elif p.get("num_classes") is not None:
        emb = emb + w["label_emb.weight"][y]
    updown = p.get("resblock_updown", False)

    def attention(name: str, h: Tensor, level: int, middle: bool = False) -> Tensor:
        if p.get("use_spatial_transformer"):
            cross = not middle and bool(p.get("disable_self_attentions", [False] * levels)[level])
            return transformer(w.at(name), p, h, context, cross)
        return attention_block(w.at(name), p, h)

    h = conv(w, "input_blocks.0.0", x)
    skips, entry = [h], 1
    for level in range(levels):
        for _ in range(blocks):
            h = res_block(w.at(f"input_blocks.{entry}.0."), p, h, emb)
            if 2**level in p["attention_resolutions"]:
                h = attention(f"input_blocks.{entry}.1.", h, level)
            skips.append(h)
            entry += 1
        if level < levels - 1:
            if updown:
                h = res_block(w.at(f"input_blocks.{entry}.0."), p, h, emb, "down")
            else:
                h = conv(w, f"input_blocks.{entry}.0.op", h, stride=2)
            skips.append(h)
            entry += 1
    h = res_block(w.at("middle_block.0."), p, h, emb)
    h = attention("middle_block.1.", h, levels - 1, middle=True)
    h = res_block(w.at("middle_block.2."), p, h, emb)
    entry = 0
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            h = res_block(w.at(f"output_blocks.{entry}.0."), p, torch.cat([h, skips.pop()], 1), emb)
            place = 1
            if 2**level in p["attention_resolutions"]:
                h = attention(f"output_blocks.{entry}.1.", h, level)
                place = 2
            if level > 0 and i == blocks:
                name = f"output_blocks.{entry}.{place}."
                h = res_block(w.at(name), p, h, emb, "up") if updown else conv(w, name + "conv", up(h))
            entry += 1
    return conv(w, "out.2", F.silu(group_norm(w, "out.0", h, 1e-5)))


def res_block(w: Tensors, p: Params, x: Tensor, emb: Tensor, resample: str = "") -> Tensor:
    h = F.silu(group_norm(w, "in_layers.0", x, 1e-5))
    if resample:
        change = up if resample == "up" else lambda a: F.avg_pool2d(a, 2)
        h, x = change(h), change(x)
    h = conv(w, "in_layers.2", h)
    e = linear(w, "emb_layers.1", F.silu(emb))[:, :, None, None]
    if p.get("use_scale_shift_norm"):
        scale, shift = e.chunk(2, dim=1)
        h = group_norm(w, "out_layers.0", h, 1e-5) * (1 + scale) + shift
    else:
        h = group_norm(w, "out_layers.0", h + e, 1e-5)
    h = conv(w, "out_layers.3", F.silu(h))
    return h + (x if x.shape[1] == h.shape[1] else conv(w, "skip_connection", x))


def heads_of(p: Params, width: int) -> int:
    size = p.get("num_head_channels", -1)
    return p["num_heads"] if size == -1 else width // size


def attention_block(w: Tensors, p: Params, x: Tensor) -> Tensor:
    b, width, rows, columns = x.shape
    heads = heads_of(p, width)
    d = width // heads
    flat = group_norm(w, "norm", x, 1e-5).reshape(b, width, rows * columns)
    qkv = torch.einsum("oi,bin->bno", w["qkv.weight"][:, :, 0], flat) + w["qkv.bias"]
    outs = []
    for head in range(heads):
        q, k, v = (qkv[..., (3 * head + j) * d : (3 * head + j + 1) * d] for j in range(3))
        outs.append(attend(q, k, v))
    out = torch.cat(outs, dim=-1)
    out = torch.einsum("oi,bni->bon", w["proj_out.weight"][:, :, 0], out) + w["proj_out.bias"][:, None]
    return x + out.reshape(x.shape)


def transformer(w: Tensors, p: Params, x: Tensor, context: Tensor | None, cross: bool) -> Tensor:
    """cross: the first attention of a block is to the context, too."""
    b, width, rows, columns = x.shape
    heads, straight = heads_of(p, width), p.get("use_linear_in_transformer", False)

    def project(name: str, tokens: Tensor) -> Tensor:
        kernel = w[f"{name}.weight"]
        kernel = kernel if straight else kernel[:, :, 0, 0]
        return torch.einsum("bni,oi->bno", tokens, kernel) + w[f"{name}.bias"]

    def attention(name: str, q: Tensor, kv: Tensor) -> Tensor:
        q, k, v = (linear(w, f"{name}.to_{c}", a, bias=False) for c, a in zip("qkv", (q, kv, kv)))
        return linear(w, f"{name}.to_out.0", multi_head(q, k, v, heads))

    h = group_norm(w, "norm", x, 1e-6).reshape(b, width, rows * columns).transpose(1, 2)
    h = project("proj_in", h)
    assert context is not None
    for depth in range(p.get("transformer_depth", 1)):
        at = f"transformer_blocks.{depth}."
        normal = layer_norm(w, at + "norm1", h)
        h = h + attention(at + "attn1", normal, context if cross else normal)
        h = h + attention(at + "attn2", layer_norm(w, at + "norm2", h), context)
        values, gate = linear(w, at + "ff.net.0.proj", layer_norm(w, at + "norm3", h)).chunk(2, dim=-1)
        h = h + linear(w, at + "ff.net.2", values * F.gelu(gate))
    return x + project("proj_out", h).transpose(1, 2).reshape(x.shape)


# Autoencoders: w below `first_stage_model.`, p: `first_stage_config.params`


def vae_block(w: Tensors, x: Tensor) -> Tensor:
    h = conv(w, "conv1", F.silu(group_norm(w, "norm1", x, 1e-6)))
    h = conv(w, "conv2", F.silu(group_norm(w, "norm2", h, 1e-6)))
    return h + (x if x.shape[1] == h.shape[1] else conv(w, "nin_shortcut", x))


def vae_attention(w: Tensors, x: Tensor) -> Tensor:
    h = group_norm(w, "norm", x, 1e-6)
    q, k, v = (conv(w, name, h).flatten(2).transpose(1, 2) for name in "qkv")
    out = attend(q, k, v).transpose(1, 2).reshape(x.shape)
    return x + conv(w, "proj_out", out)


def vae_middle(w: Tensors, d: Params, h: Tensor) -> Tensor:
    h = vae_block(w.at("mid.block_1."), h)
    if d.get("attn_type") != "none":
        h = vae_attention(w.at("mid.attn_1."), h)
    return vae_block(w.at("mid.block_2."), h)


def attends(d: Params, level: int) -> bool:
    return d["resolution"] / 2**level in d["attn_resolutions"]


def encode(w: Tensors, p: Params, x: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to the output of quant_conv: a VQ's latents, or a KL's moments."""
    d, e = p["ddconfig"], w.at("encoder.")
    h, levels = conv(e, "conv_in", x.double()), len(d["ch_mult"])
    for level in range(levels):
        for i in range(d["num_res_blocks"]):
            h = vae_block(e.at(f"down.{level}.block.{i}."), h)
            if attends(d, level):
                h = vae_attention(e.at(f"down.{level}.attn.{i}."), h)
        if level < levels - 1:
            h = conv(e, f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = vae_middle(e, d, h)
    h = conv(e, "conv_out", F.silu(group_norm(e, "norm_out", h, 1e-6)))
    return conv(w, "quant_conv", h)


def posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of a KL autoencoder."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean, (logvar.clamp(-30, 20) / 2).exp()


def nearest_codes(w: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
    """(the nearest code at each position, its number (B, h, w)); the first one on ties."""
    codes = w["quantize.embedding.weight"]
    rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    distances = (rows**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * rows @ codes.T
    index = distances.argmin(dim=1)
    grid = index.reshape(z.shape[0], *z.shape[2:])
    return codes[grid].permute(0, 3, 1, 2), grid


def decode(w: Tensors, p: Params, z: Tensor) -> Tensor:
    """Latents without their scale to images, about in [-1, 1]. A VQ quantises them first."""
    d, e = p["ddconfig"], w.at("decoder.")
    if "n_embed" in p:
        z = nearest_codes(w, z)[0]
    h = conv(e, "conv_in", conv(w, "post_quant_conv", z))
    h = vae_middle(e, d, h)
    for level in reversed(range(len(d["ch_mult"]))):
        for i in range(d["num_res_blocks"] + 1):
            h = vae_block(e.at(f"up.{level}.block.{i}."), h)
            if attends(d, level):
                h = vae_attention(e.at(f"up.{level}.attn.{i}."), h)
        if level > 0:
            h = conv(e, f"up.{level}.upsample.conv", up(h))
    return conv(e, "conv_out", F.silu(group_norm(e, "norm_out", h, 1e-6)))


# Condition stages: w below `cond_stage_model.`


def bert(w: Tensors, tokens: Tensor, layers: int) -> Tensor:
    """Tokens (B, N) to (B, N, width), without a mask. 8 heads, whatever the width."""
    w = w.at("transformer.")
    h = w["token_emb.weight"][tokens] + w["pos_emb.emb.weight"][: tokens.shape[1]]
    for layer in range(layers):
        at, mlp = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        normal = layer_norm(w, f"{at}.0", h)
        q, k, v = (linear(w, f"{at}.1.to_{c}", normal, bias=False) for c in "qkv")
        h = h + linear(w, f"{at}.1.to_out", multi_head(q, k, v, 8))
        inner = F.gelu(linear(w, f"{mlp}.1.net.0.0", layer_norm(w, f"{mlp}.0", h)))
        h = h + linear(w, f"{mlp}.1.net.2", inner)
    return layer_norm(w, "norm", h)


def open_clip(w: Tensors, tokens: Tensor, layers: int) -> Tensor:
    """OpenCLIP's text: all blocks but the last, then the last norm; heads of 64."""
    w = w.at("model.")
    h = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    for layer in range(layers - 1):
        b = w.at(f"transformer.resblocks.{layer}.")
        normal = layer_norm(b, "ln_1", h)
        qkv = torch.einsum("bni,oi->bno", normal, b["attn.in_proj_weight"]) + b["attn.in_proj_bias"]
        q, k, v = qkv.chunk(3, dim=-1)
        h = h + linear(b, "attn.out_proj", multi_head(q, k, v, q.shape[-1] // 64, causal=True))
        h = h + linear(b, "mlp.c_proj", F.gelu(linear(b, "mlp.c_fc", layer_norm(b, "ln_2", h))))
    return layer_norm(w, "ln_final", h)


def class_embedding(w: Tensors, labels: list[int]) -> Tensor:
    return torch.stack([w["embedding.weight"][label][None] for label in labels])


def spatial_rescaler(w: Tensors, p: Params, classes: Tensor) -> Tensor:
    """Classes (B, H, W): one-hot, halved by means of 2x2, then a 1x1 convolution without bias."""
    x = torch.zeros(len(classes), p["in_channels"], *classes.shape[1:], dtype=torch.float64)
    x.scatter_(1, classes[:, None], 1.0)
    for _ in range(p["n_stages"]):
        x = F.avg_pool2d(x, 2)
    return F.conv2d(x, w["channel_mapper.weight"])
