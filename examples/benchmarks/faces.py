"""One aligned face through each network: this package, and the originals' arithmetic in plain PyTorch.

    python examples/benchmarks/faces.py [--networks codeformer gfpgan gpen] [--memory]

The peer is the tests' reference, which shares no code with the package: every image has a modulated weight of
its own, zeros are inserted and blurred, attention is a product of matrices. Its loops are replaced by
PyTorch's convolutions, interpolation and norms, as the originals call them. Weights are random, of the
published sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import Case, options, run
from torch import Tensor

from ldm_core.restoration import CodeFormerConfig, GFPGANConfig, GPENConfig, ParseNetConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from restoration import reference
from restoration.small import file_tensors, picture, random_network

CONFIGS: dict[str, Any] = {
    "codeformer": CodeFormerConfig(),
    "gfpgan": GFPGANConfig(),
    "gfpgan-v1": GFPGANConfig((512, 512, 512, 512, 256, 128, 64, 32), variant="original"),
    "gpen": GPENConfig(),
    "parsenet": ParseNetConfig(),
}
PEER = "plain PyTorch"


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, w, b, stride, padding)


def upfirdn(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height, up, width, up)
    spread[:, :, :, 0, :, 0] = x
    padded = F.pad(spread.view(batch, channels, height * up, width * up), (before, after, before, after))
    weight = kernel.flip(0, 1).to(x).expand(channels, 1, -1, -1)
    return F.conv2d(padded, weight, groups=channels)[:, :, ::down, ::down]


def modulated(
    x: Tensor, weight: Tensor, s: Tensor, *, demodulate: bool = True, transposed: bool = False
) -> Tensor:
    w = weight * s[:, None, :, None, None]
    if demodulate:
        w = w * torch.rsqrt(w.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    batch, out, into, k, _ = w.shape
    joined = x.reshape(1, batch * into, *x.shape[2:])
    if transposed:
        y = F.conv_transpose2d(joined, w.transpose(1, 2).reshape(-1, out, k, k), stride=2, groups=batch)
    else:
        y = F.conv2d(joined, w.view(-1, into, k, k), padding=k // 2, groups=batch)
    return y.view(batch, out, *y.shape[2:])


def plain_attention(t: Any, name: str, x: Tensor) -> Tensor:
    h = reference.norm_named(t, f"{name}.norm", x)
    q, k, v = (reference.conv_named(t, f"{name}.{one}", h).flatten(2) for one in "qkv")
    weights = (torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5).softmax(dim=2)
    return x + reference.conv_named(
        t, f"{name}.proj_out", torch.bmm(v, weights.transpose(1, 2)).view(x.shape)
    )


def use_pytorch() -> None:
    """Replace the loops of the reference by what the originals call."""
    replacements: dict[str, Callable[..., Tensor]] = {
        "conv": conv,
        "upfirdn": upfirdn,
        "modulated": modulated,
        "bilinear": lambda x, scale: F.interpolate(x, scale_factor=scale, mode="bilinear"),
        "nearest": lambda x, height, width: F.interpolate(x, (height, width), mode="nearest"),
        "lrelu": lambda x, slope=0.2: F.leaky_relu(x, slope),
        "fused": lambda x, b: F.leaky_relu(x + b.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * 2**0.5,
        "swish": lambda x: x * torch.sigmoid(x),
        "group_norm": lambda x, w, b: F.group_norm(x, 32, w, b, 1e-6),
        "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        "softmax": lambda x: x.softmax(dim=-1),
        "pixel_attention": plain_attention,
        "batch_norm": lambda t, name, x: F.batch_norm(
            x, *(t[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        ),
    }
    for name, function in replacements.items():
        assert hasattr(reference, name)
        setattr(reference, name, function)


@cache
def network_of(name: str) -> Any:
    return random_network(CONFIGS[name], torch.float32)


def ours(name: str, x: Tensor) -> Callable[[], Any]:
    how = {"noise": "stored"} if name.startswith("gfpgan") else {}
    network = network_of(name)
    return lambda: network(x, **how)


def plain(name: str, x: Tensor) -> Callable[[], Any]:
    use_pytorch()
    t = file_tensors(network_of(name))
    if not name.startswith("gfpgan"):
        how = (0.5, True) if name == "codeformer" else ()
        return lambda: getattr(reference, name)(t, x, *how)
    config = CONFIGS[name]
    maps = [t[f"stylegan_decoder.noises.noise{i}"] for i in range(2 * len(config.widths) - 1)]
    return lambda: reference.gfpgan(t, x, config.variant, maps)


def first(make: Callable[[str, Tensor], Callable[[], Any]], name: str, x: Tensor) -> Callable[[], Tensor]:
    call = make(name, x)
    return lambda: found[0] if isinstance(found := call(), tuple) else found


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for name in args.networks:
        size = getattr(CONFIGS[name], "size", 512)
        x = picture(size, 1, torch.float32)
        candidates = {"ldm_core": partial(first, ours, name, x), PEER: partial(first, plain, name, x)}
        yield Case(f"{name}, {size}×{size}", candidates, PEER)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--networks", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    args = parser.parse_args()
    args.dtype = ["float32"]
    run("faces", cases(args), args)


if __name__ == "__main__":
    main()
