"""The networks for faces, written again from their description: loops and einsum in float64, nothing shared.

Every function takes the tensors of a file under the names of the published files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


# --- arithmetic ---


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Every output as the sum over its window."""
    batch, _, height, width = x.shape
    padded = x.new_zeros(batch, x.shape[1], height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    k = w.shape[2]
    windows = padded.unfold(2, k, stride).unfold(3, k, stride)
    out = torch.einsum("bcyxij,ocij->boyx", windows, w)
    return out if b is None else out + b[:, None, None]


def depthwise(x: Tensor, w: Tensor, stride: int) -> Tensor:
    parts = [conv(x[:, c : c + 1], w[c : c + 1], stride=stride, padding=1) for c in range(x.shape[1])]
    return torch.cat(parts, dim=1)


def upfirdn(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """Insert zeros, pad, convolve (with the flipped kernel), take every down-th."""
    batch, channels, height, width = x.shape
    full = x.new_zeros(batch, channels, height * up + before + after, width * up + before + after)
    full[:, :, before : before + height * up : up, before : before + width * up : up] = x
    rows = [conv(full[:, c : c + 1], kernel.flip(0, 1)[None, None]) for c in range(channels)]
    return torch.cat(rows, dim=1)[:, :, ::down, ::down]


BINOMIAL = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
KERNEL = BINOMIAL[:, None] * BINOMIAL[None] / 64


def bilinear(x: Tensor, scale: float) -> Tensor:
    """Along each axis, the pixel's centre in the source and the two pixels around it."""
    for dim in (2, 3):
        size = x.shape[dim]
        lines = []
        for i in range(int(size * scale)):
            place = max((i + 0.5) / scale - 0.5, 0.0)
            low = math.floor(place)
            high, part = min(low + 1, size - 1), place - low
            lines.append(x.select(dim, low) * (1 - part) + x.select(dim, high) * part)
        x = torch.stack(lines, dim)
    return x


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [i * x.shape[3] // width for i in range(width)]
    return x[:, :, rows][:, :, :, columns]


def lrelu(x: Tensor, slope: float = 0.2) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def fused(x: Tensor, bias: Tensor) -> Tensor:
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    return lrelu(x + bias.view(shape)) * math.sqrt(2)


def group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    groups = x.unflatten(1, (32, -1))
    mean = groups.mean(dim=(2, 3, 4), keepdim=True)
    var = ((groups - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
    return ((groups - mean) / (var + 1e-6).sqrt()).flatten(1, 2) * w[:, None, None] + b[:, None, None]


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w + b


def batch_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, var, w, b = (
        t[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * w + b


def softmax(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


# --- CodeFormer ---


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def conv_named(t: Tensors, name: str, x: Tensor, **how: int) -> Tensor:
    return conv(x, t[f"{name}.weight"], t[f"{name}.bias"], **how)


def norm_named(t: Tensors, name: str, x: Tensor) -> Tensor:
    return group_norm(x, t[f"{name}.weight"], t[f"{name}.bias"])


def res(t: Tensors, name: str, x: Tensor) -> Tensor:
    h = conv_named(t, f"{name}.conv1", swish(norm_named(t, f"{name}.norm1", x)), padding=1)
    h = conv_named(t, f"{name}.conv2", swish(norm_named(t, f"{name}.norm2", h)), padding=1)
    return h + (conv_named(t, f"{name}.conv_out", x) if f"{name}.conv_out.weight" in t else x)


def pixel_attention(t: Tensors, name: str, x: Tensor) -> Tensor:
    h = norm_named(t, f"{name}.norm", x)
    q, k, v = (conv_named(t, f"{name}.{one}", h).flatten(2) for one in "qkv")
    weights = softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1]))
    mixed = torch.einsum("bij,bcj->bci", weights, v).view(x.shape)
    return x + conv_named(t, f"{name}.proj_out", mixed)


def flat_blocks(t: Tensors, side: str, x: Tensor, see: Callable[[str, str, Tensor], Tensor]) -> Tensor:
    """The blocks of a flat list, each of the kind that its tensors tell. see: (kind, of the next, result)."""
    count = 1 + max(int(name.split(".")[2]) for name in t if name.startswith(f"{side}.blocks."))

    def kind(i: int) -> str:
        name = f"{side}.blocks.{i}."
        if i == count:
            return "end"
        for found, mark in (("res", "conv1.weight"), ("attention", "q.weight"), ("resample", "conv.weight")):
            if name + mark in t:
                return found
        return "norm" if t[f"{name}weight"].ndim == 1 else "conv"

    for i in range(count):
        name = f"{side}.blocks.{i}"
        if kind(i) == "res":
            x = res(t, name, x)
        elif kind(i) == "attention":
            x = pixel_attention(t, name, x)
        elif kind(i) == "norm":
            x = norm_named(t, name, x)
        elif kind(i) == "conv":
            x = conv_named(t, name, x, padding=1)
        elif side == "encoder":
            padded = x.new_zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
            padded[:, :, :-1, :-1] = x
            x = conv_named(t, f"{name}.conv", padded, stride=2)
        else:
            x = nearest(x, 2 * x.shape[2], 2 * x.shape[3])
            x = conv_named(t, f"{name}.conv", x, padding=1)
        x = see(kind(i), kind(i + 1), x)
    return x


def face_autoencoder(t: Tensors, x: Tensor) -> Tensor:
    def same(kind: str, after: str, h: Tensor) -> Tensor:
        return h

    z = flat_blocks(t, "encoder", x, same)
    codes = t["quantize.embedding.weight"]
    out = torch.empty_like(z)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (z.shape[0], *z.shape[2:]))).tolist():
        own = z[b, :, i, j]
        distances = (own**2).sum() + (codes**2).sum(1) - 2 * codes @ own
        out[b, :, i, j] = codes[int(distances.argmin())]
    return flat_blocks(t, "generator", out, same)


def transformer(t: Tensors, features: Tensor, heads: int = 8) -> Tensor:
    x = torch.einsum("bcyx,dc->byxd", features, t["feat_emb.weight"]).flatten(1, 2) + t["feat_emb.bias"]
    position, width = t["position_emb"], x.shape[2]
    layer = 0
    while (name := f"ft_layers.{layer}") + ".norm1.weight" in t:
        h = layer_norm(x, t[f"{name}.norm1.weight"], t[f"{name}.norm1.bias"])
        projections = zip(
            t[f"{name}.self_attn.in_proj_weight"].split(width),
            t[f"{name}.self_attn.in_proj_bias"].split(width),
            (h + position, h + position, h),
        )
        q, k, v = (y @ w.T + b for w, b, y in projections)
        mixed = []
        for part in torch.arange(width).split(width // heads):
            scores = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / math.sqrt(len(part))
            mixed.append(torch.einsum("bnm,bmd->bnd", softmax(scores), v[..., part]))
        out = f"{name}.self_attn.out_proj"
        x = x + torch.cat(mixed, dim=2) @ t[f"{out}.weight"].T + t[f"{out}.bias"]
        h = layer_norm(x, t[f"{name}.norm2.weight"], t[f"{name}.norm2.bias"])
        h = h @ t[f"{name}.linear1.weight"].T + t[f"{name}.linear1.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ t[f"{name}.linear2.weight"].T + t[f"{name}.linear2.bias"]
        layer += 1
    x = layer_norm(x, t["idx_pred_layer.0.weight"], t["idx_pred_layer.0.bias"])
    return x @ t["idx_pred_layer.1.weight"].T


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    n = x.shape[2] * x.shape[3]
    mean = x.sum(dim=(2, 3), keepdim=True) / n
    var = ((x - mean) ** 2).sum(dim=(2, 3), keepdim=True) / (n - 1)
    return mean, (var + 1e-5).sqrt()


def codeformer(t: Tensors, x: Tensor, w: float, adain: bool) -> tuple[Tensor, Tensor]:
    """(the picture, the logits)."""
    sizes = {name.split(".")[1] for name in t if name.startswith("fuse_convs_dict.")}
    kept: dict[str, Tensor] = {}
    fresh = [False]

    def keep(kind: str, after: str, h: Tensor) -> Tensor:
        if after == "resample":
            kept[str(h.shape[2])] = h
        return h

    def fuse(kind: str, after: str, h: Tensor) -> Tensor:
        if kind == "resample":
            fresh[0] = True
        elif kind == "res" and fresh[0]:
            fresh[0] = False
            if str(h.shape[2]) in sizes and w > 0:
                name = f"fuse_convs_dict.{h.shape[2]}"
                e = res(t, f"{name}.encode_enc", torch.cat([kept[str(h.shape[2])], h], dim=1))
                scale, shift = (
                    conv_named(
                        t, f"{name}.{one}.2", lrelu(conv_named(t, f"{name}.{one}.0", e, padding=1)), padding=1
                    )
                    for one in ("scale", "shift")
                )
                return h + w * (h * scale + shift)
        return h

    features = flat_blocks(t, "encoder", x, keep)
    logits = transformer(t, features)
    codes = t["quantize.embedding.weight"][softmax(logits).argmax(dim=2)]
    codes = codes.transpose(1, 2).reshape(features.shape)
    if adain:
        (mean, std), (wanted_mean, wanted_std) = moments(codes), moments(features)
        codes = (codes - mean) / std * wanted_std + wanted_mean
    return flat_blocks(t, "generator", codes, fuse), logits


# --- StyleGAN2 ---


def modulated(
    x: Tensor, weight: Tensor, s: Tensor, *, demodulate: bool = True, transposed: bool = False
) -> Tensor:
    """Each image with a weight of its own. weight: (1, O, I, k, k), already scaled."""
    outs = []
    for image, own in zip(x, s):
        w = weight[0] * own[None, :, None, None]
        if demodulate:
            w = w / ((w**2).sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not transposed:
            outs.append(conv(image[None], w, padding=w.shape[2] // 2)[0])
            continue
        height, width = image.shape[1:]
        out = image.new_zeros(len(w), 2 * height + 1, 2 * width + 1)
        for i in range(3):
            for j in range(3):
                out[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += torch.einsum(
                    "oc,cyx->oyx", w[:, :, i, j], image
                )
        outs.append(out)
    return torch.stack(outs)


def linear(t: Tensors, name: str, x: Tensor, scaled: bool, lr: float = 1.0) -> Tensor:
    w, b = t[f"{name}.weight"], t[f"{name}.bias"]
    return x @ (w * lr / math.sqrt(w.shape[1])).T + b * lr if scaled else x @ w.T + b


def scaled_weight(w: Tensor, scaled: bool = True) -> Tensor:
    return w / math.sqrt(math.prod(w.shape[-3:])) if scaled else w


def style_of(t: Tensors, name: str, latent: Tensor, scaled: bool) -> Tensor:
    return linear(t, f"{name}.modulation", latent, scaled)


def pixel_norm(x: Tensor) -> Tensor:
    return x / ((x**2).mean(dim=1, keepdim=True) + 1e-8).sqrt()


# --- GFPGAN ---


def gfpgan(t: Tensors, x: Tensor, variant: str, noise: list[Tensor]) -> Tensor:
    """variant: "clean", "bilinear" or "original"; noise: one map (B or 1, 1, h, h) for each style conv."""
    scaled, root = variant != "clean", math.sqrt(2)
    decoder = "stylegan_decoder"

    def unet_conv(name: str, weight: str, bias: str | None, h: Tensor) -> Tensor:
        w = scaled_weight(t[f"{name}{weight}.weight"], scaled)
        return conv(h, w, None if bias is None else t[f"{name}{bias}.bias"], padding=w.shape[2] // 2)

    def act(h: Tensor) -> Tensor:
        return lrelu(h) * root if scaled else lrelu(h)

    def down(name: str, h: Tensor) -> Tensor:
        one, two, bias, skip = (
            (".conv1.0", ".conv2.1", ".conv2.2", ".skip.1")
            if scaled
            else (".conv1", ".conv2", ".conv2", ".skip")
        )
        out = act(unet_conv(name, one, ".conv1.1" if scaled else one, h))
        if variant == "original":
            w = scaled_weight(t[f"{name}{two}.weight"])
            out = conv(upfirdn(out, KERNEL, 1, 1, 2, 2), w, t[f"{name}{bias}.bias"], stride=2)
            w = scaled_weight(t[f"{name}{skip}.weight"])
            short = conv(upfirdn(h, KERNEL, 1, 1, 1, 1), w, stride=2)
        else:
            out = unet_conv(name, two, bias, bilinear(out, 0.5))
            short = unet_conv(name, skip, None, bilinear(h, 0.5))
        return (act(out) + short) / (root if scaled else 1)

    def up(name: str, h: Tensor) -> Tensor:
        one, one_bias, bias = (
            (".conv1.0", ".conv1.1", ".conv2.activation") if scaled else (".conv1", ".conv1", ".conv2")
        )
        out = act(unet_conv(name, one, one_bias, h))
        out = act(unet_conv(name, ".conv2", bias, bilinear(out, 2)))
        return (out + unet_conv(name, ".skip", None, bilinear(h, 2))) / (root if scaled else 1)

    first, bias = ("conv_body_first.0", "conv_body_first.1") if scaled else ("conv_body_first",) * 2
    feat = act(unet_conv("", first, bias, x))
    skips: list[Tensor] = []
    levels = max(int(n.split(".")[1]) for n in t if n.startswith("conv_body_down.")) + 1
    for i in range(levels):
        feat = down(f"conv_body_down.{i}", feat)
        skips.insert(0, feat)
    final, bias = ("final_conv.0", "final_conv.1") if scaled else ("final_conv",) * 2
    feat = act(unet_conv("", final, bias, feat))
    latents = linear(t, "final_linear", feat.reshape(len(feat), -1), scaled)
    latents = latents.view(len(x), 2 * (levels + 1), -1)
    conditions = []
    for i in range(levels):
        feat = up(f"conv_body_up.{i}", feat + skips[i])
        pair = []
        for one in (f"condition_scale.{i}", f"condition_shift.{i}"):
            pair.append(unet_conv(one, ".2", ".2", act(unet_conv(one, ".0", ".0", feat))))
        conditions.append(pair)

    def style_conv(name: str, h: Tensor, latent: Tensor, map_: Tensor, doubles: bool = False) -> Tensor:
        inner = f"{name}.modulated_conv"
        s, w = style_of(t, inner, latent, scaled), scaled_weight(t[f"{inner}.weight"], scaled)
        if doubles and variant == "original":
            h = upfirdn(modulated(h, w, s, transposed=True), KERNEL * 4, 1, 1, 1, 1)
        else:
            h = modulated(bilinear(h, 2) if doubles else h, w, s)
        if scaled:
            return fused(h + t[f"{name}.weight"] * map_, t[f"{name}.activate.bias"])
        return lrelu(h * root + t[f"{name}.weight"] * map_ + t[f"{name}.bias"])

    def to_rgb(name: str, h: Tensor, latent: Tensor, skip: Tensor | None = None) -> Tensor:
        inner = f"{name}.modulated_conv"
        w = scaled_weight(t[f"{inner}.weight"], scaled)
        out = modulated(h, w, style_of(t, inner, latent, scaled), demodulate=False) + t[f"{name}.bias"]
        if skip is None:
            return out
        larger = upfirdn(skip, KERNEL * 4, 2, 1, 2, 1) if variant == "original" else bilinear(skip, 2)
        return out + larger

    h = t[f"{decoder}.constant_input.weight"].repeat(len(x), 1, 1, 1)
    h = style_conv(f"{decoder}.style_conv1", h, latents[:, 0], noise[0])
    picture = to_rgb(f"{decoder}.to_rgb1", h, latents[:, 1])
    i = 1
    for level, (scale, shift) in enumerate(conditions):
        h = style_conv(f"{decoder}.style_convs.{i - 1}", h, latents[:, i], noise[i], doubles=True)
        half = h.shape[1] // 2
        h = torch.cat([h[:, :half], h[:, half:] * scale + shift], dim=1)
        h = style_conv(f"{decoder}.style_convs.{i}", h, latents[:, i + 1], noise[i + 1])
        picture = to_rgb(f"{decoder}.to_rgbs.{level}", h, latents[:, i + 2], picture)
        i += 2
    return picture


# --- GPEN ---


def gpen(t: Tensors, x: Tensor) -> Tensor:
    maps = [fused(conv(x, scaled_weight(t["ecd0.0.0.weight"])), t["ecd0.0.1.bias"])]
    while (name := f"ecd{len(maps)}.0") + ".1.weight" in t:
        blurred = upfirdn(maps[-1], t[f"{name}.0.kernel"], 1, 1, 2, 2)
        maps.append(fused(conv(blurred, scaled_weight(t[f"{name}.1.weight"]), stride=2), t[f"{name}.2.bias"]))
    w = t["final_linear.0.weight"]
    latent = fused(maps[-1].reshape(len(x), -1) @ (w / math.sqrt(w.shape[1])).T, t["final_linear.0.bias"])
    latent, layer = pixel_norm(latent), 1
    while (name := f"generator.style.{layer}") + ".weight" in t:
        latent = lrelu(linear(t, name, latent, True, lr=0.01)) * math.sqrt(2)
        layer += 1

    def style_conv(name: str, h: Tensor, map_: Tensor) -> Tensor:
        s, w = style_of(t, f"{name}.conv", latent, True), scaled_weight(t[f"{name}.conv.weight"])
        kernel = t.get(f"{name}.conv.blur.kernel")
        h = modulated(h, w, s, transposed=kernel is not None)
        if kernel is not None:
            h = upfirdn(h, kernel, 1, 1, 1, 1)
        return fused(torch.cat([h, t[f"{name}.noise.weight"] * map_], 1), t[f"{name}.activate.bias"])

    def to_rgb(name: str, h: Tensor) -> Tensor:
        w = scaled_weight(t[f"{name}.conv.weight"])
        return (
            modulated(h, w, style_of(t, f"{name}.conv", latent, True), demodulate=False) + t[f"{name}.bias"]
        )

    h = style_conv("generator.conv1", t["generator.input.input"].repeat(len(x), 1, 1, 1), maps[-1])
    picture = to_rgb("generator.to_rgb1", h)
    for level in range(len(maps) - 1):
        own = maps[-2 - level]
        h = style_conv(f"generator.convs.{2 * level}", h, own)
        h = style_conv(f"generator.convs.{2 * level + 1}", h, own)
        name = f"generator.to_rgbs.{level}"
        picture = to_rgb(name, h) + upfirdn(picture, t[f"{name}.upsample.kernel"], 2, 1, 2, 1)
    return picture


# --- ParseNet ---


def parsenet(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    def layer(name: str, h: Tensor, how: str = "") -> Tensor:
        if how == "up":
            h = nearest(h, 2 * h.shape[2], 2 * h.shape[3])
        rows, columns = ([1, *range(n), n - 2] for n in h.shape[2:])  # the border is not repeated
        h = conv(
            h[:, :, rows][:, :, :, columns], t[f"{name}.conv2d.weight"], stride=2 if how == "down" else 1
        )
        if f"{name}.conv2d.bias" in t:
            return h + t[f"{name}.conv2d.bias"][:, None, None]
        return batch_norm(t, f"{name}.norm.norm", h)

    def block(name: str, h: Tensor, how: str = "") -> Tensor:
        out = lrelu(layer(f"{name}.conv1", h, "up" if how == "up" else ""))
        out = layer(f"{name}.conv2", out, "down" if how == "down" else "")
        return out + (layer(f"{name}.shortcut_func", h, how) if how else h)

    def run(side: str, h: Tensor, how: str = "", first: int = 0) -> Tensor:
        i = first
        while f"{side}.{i}.conv1.conv2d.weight" in t:
            h = block(f"{side}.{i}", h, how)
            i += 1
        return h

    h = run("encoder", layer("encoder.0", x), "down", first=1)
    h = run("decoder", h + run("body", h), "up")
    return layer("out_mask_conv", h), layer("out_img_conv", h)


# --- RetinaFace ---


def retinaface(t: Tensors, x: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """x: RGB in [0, 255]; slope: of the pyramid's and the context modules' activations."""
    mean = x.new_tensor([104.0, 117.0, 123.0])[:, None, None]
    h = x[:, [2, 1, 0]] - mean

    def normed(name: str, h: Tensor, stride: int = 1, slope: float | None = None) -> Tensor:
        w = t[f"{name}.0.weight"]
        h = batch_norm(t, f"{name}.1", conv(h, w, stride=stride, padding=w.shape[2] // 2))
        return h if slope is None else lrelu(h, slope)

    def bottleneck(name: str, h: Tensor, stride: int) -> Tensor:
        out = h
        for n, step in ((1, 1), (2, stride), (3, 1)):
            w = t[f"{name}.conv{n}.weight"]
            out = batch_norm(t, f"{name}.bn{n}", conv(out, w, stride=step, padding=w.shape[2] // 2))
            out = lrelu(out, 0) if n < 3 else out
        short = normed(f"{name}.downsample", h, stride) if f"{name}.downsample.0.weight" in t else h
        return lrelu(out + short, 0)

    levels = []
    if "body.conv1.weight" in t:
        h = lrelu(batch_norm(t, "body.bn1", conv(h, t["body.conv1.weight"], stride=2, padding=3)), 0)
        bordered = torch.full((*h.shape[:2], h.shape[2] + 2, h.shape[3] + 2), -math.inf, dtype=h.dtype)
        bordered[:, :, 1:-1, 1:-1] = h
        h = bordered.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(4, 5))
        for layer, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
            for i in range(blocks):
                h = bottleneck(f"body.layer{layer}.{i}", h, 2 if layer > 1 and i == 0 else 1)
            levels.append(h)
        levels = levels[1:]
    else:
        halves = {"1.0", "1.2", "1.4", "2.0", "3.0"}
        for stage, blocks in ((1, 6), (2, 6), (3, 2)):
            for i in range(blocks):
                name, stride = f"body.stage{stage}.{i}", 2 if f"{stage}.{i}" in halves else 1
                if (stage, i) == (1, 0):
                    h = normed(name, h, 2, 0.1)
                    continue
                h = lrelu(batch_norm(t, f"{name}.1", depthwise(h, t[f"{name}.0.weight"], stride)), 0.1)
                h = lrelu(batch_norm(t, f"{name}.4", conv(h, t[f"{name}.3.weight"])), 0.1)
            levels.append(h)
    one, two, three = (normed(f"fpn.output{n}", level, slope=slope) for n, level in enumerate(levels, 1))
    two = normed("fpn.merge2", two + nearest(three, *two.shape[2:]), slope=slope)
    one = normed("fpn.merge1", one + nearest(two, *one.shape[2:]), slope=slope)
    found: list[list[Tensor]] = [[], [], []]
    for n, level in enumerate((one, two, three)):
        ssh = f"ssh{n + 1}"
        five = normed(f"{ssh}.conv5X5_1", level, slope=slope)
        seven = normed(f"{ssh}.conv7X7_2", five, slope=slope)
        parts = [
            normed(f"{ssh}.conv3X3", level),
            normed(f"{ssh}.conv5X5_2", five),
            normed(f"{ssh}.conv7x7_3", seven),
        ]
        context = lrelu(torch.cat(parts, dim=1), 0)
        for values, head, out in ((4, "BboxHead", 0), (2, "ClassHead", 1), (10, "LandmarkHead", 2)):
            y = conv_named(t, f"{head}.{n}.conv1x1", context)
            rows = [
                y[:, a * values : (a + 1) * values, i, j]
                for i in range(y.shape[2])
                for j in range(y.shape[3])
                for a in range(2)
            ]
            found[out].append(torch.stack(rows, dim=1))
    boxes, logits, points = (torch.cat(one, dim=1) for one in found)
    return boxes, logits, points
