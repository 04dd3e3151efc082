"""Winograd's 3x3 convolution: F(4x4, 3x3) needs a quarter of the multiplications, F(2x2, 3x3) four ninths.

Lavin and Gray 2016 (arXiv:1509.09308): a tile of 4x4 outputs depends on 6x6 inputs. The kernel and the inputs
are taken as polynomials, evaluated at six points, multiplied pointwise and interpolated. In two dimensions

    Y = A^T [ (G w G^T) * (B^T d B) ] A

needs 36 products for 16 outputs where the definition needs 144. Summed over the channels, the product `*`
becomes 36 matrix products, which take most of the time.

The points are 0, +-5/8, +-3/2 and infinity instead of the usual 0, +-1, +-2. With the usual points the error
against float64 is four times as large; with these it equals that of PyTorch's convolution with AVX2
instructions (docs/performance.md). Barabasz et al. 2020 (arXiv:1803.10986) explain why points of magnitude
near one are good.

F(2x2, 3x3) takes tiles of 2x2 outputs and the points 0, +-1 and infinity. Its transforms are sums, so it is
the form for bfloat16 (docs/accelerations.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WORKSPACE_BYTES = 32 * 2**20  # memory for the tiles that are processed together; about the size of the caches

P, Q = 0.625, 1.5  # the points other than 0 and infinity are P, -P, Q, -Q
SUM, PRODUCT = P * P + Q * Q, P * P * Q * Q


@dataclass(frozen=True)
class Form:
    """F(tile x tile, 3x3) with `tile + 1` finite points and infinity.

    evaluate: B^T d along one axis, from `tile + 2` inputs to as many values. interpolate: A^T m along one
    axis, from these to `tile` outputs. Both write to the tensors that they are given last.
    """

    tile: int
    points: tuple[float, ...]
    evaluate: Callable[[list[Tensor], Tensor], None]
    interpolate: Callable[[Tensor, list[Tensor]], None]

    @property
    def window(self) -> int:
        """Inputs of a tile along an axis, which is also the number of points."""
        return self.tile + 2


def kernel_transform(points: tuple[float, ...]) -> Tensor:
    """G, float64: evaluates a kernel at the points and divides by the Lagrange denominators.

    A row for each finite point, and one for infinity: (points + 1, 3).
    """
    rows = []
    for i, point in enumerate(points):
        denominator = math.prod(point - other for k, other in enumerate(points) if k != i)
        rows.append([point**power / denominator for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def transform_weight(weight: Tensor, form: Form | None = None) -> Tensor:
    """G w G^T for all channels: weight (O, C, 3, 3) -> (36, O, C), or (16, O, C) for F(2x2, 3x3).

    That is 4 or 1.8 times as many values. form: by default `F4`.
    """
    g = kernel_transform((form or F4).points)
    both_axes = torch.kron(g, g).to(weight)  # (36, 9)
    if weight.is_contiguous(memory_format=torch.channels_last):
        taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # (O, 9, C), a view
        return (both_axes @ taps).transpose(0, 1)
    return (both_axes @ weight.flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2])


def winograd_conv2d(
    x: Tensor, transformed: Tensor, bias: Tensor | None = None, form: Form | None = None
) -> Tensor:
    """A 3x3 convolution of stride 1 and zero padding 1: (B, C, h, w) -> (B, O, h, w), channels-last.

    transformed: `transform_weight(weight, form)`, (36, O, C) for `F4`, which is the default. Not
    differentiable. Processes the image in strips of tiles, so that the memory needed in addition to the
    result stays near `WORKSPACE_BYTES`. Tiles are transformed in float32 at least.
    """
    form = form or F4
    tile, points = form.tile, form.window**2
    batch, channels, h, w = x.shape
    outputs = transformed.shape[1]
    down, across = -(-h // tile), -(-w // tile)  # tiles
    result = x.new_empty(batch, down * tile, across * tile, outputs)

    tile_row_bytes = points * batch * across * (channels + outputs) * x.element_size()
    rows = min(down, max(1, WORKSPACE_BYTES // tile_row_bytes))
    values = x.new_empty(points * batch * rows * across * channels)
    products = x.new_empty(points * batch * rows * across * outputs)
    # Only a strip of the image is padded; a padded copy of the whole image would be as large as the result.
    wide = torch.promote_types(x.dtype, torch.float32)
    bordered = x.new_zeros(batch, rows * tile + 2, across * tile + 2, channels, dtype=wide)
    for first in range(0, down, rows):
        strip = min(rows, down - first)
        above = 1 if first == 0 else 0
        inside = x[:, :, first * tile - 1 + above : (first + strip) * tile + 1].permute(0, 2, 3, 1)
        bordered[:, above : above + inside.shape[1], 1 : w + 1] = inside
        bordered[:, above + inside.shape[1] :] = 0
        tiles = (form.window, form.window, batch, strip, across)
        d = values[: values.numel() // rows * strip].view(*tiles, channels)
        m = products[: products.numel() // rows * strip].view(*tiles, outputs)
        _input_tiles(bordered[:, : strip * tile + 2], d, form)
        torch.bmm(d.view(points, -1, channels), transformed.mT, out=m.view(points, -1, outputs))
        _output_tiles(m.to(wide), result[:, first * tile : (first + strip) * tile], form)
    if bias is not None:
        result += bias
    return result[:, :h, :w].permute(0, 3, 1, 2)


def _input_tiles(x: Tensor, out: Tensor, form: Form) -> None:
    """B^T d B for every tile of a padded strip x (B, h, w, C) -> out (6, 6, B, strip, across, C)."""
    tile, window = form.tile, form.window
    strip, across = out.shape[3:5]
    lines = [x[:, i : i + tile * (strip - 1) + 1 : tile] for i in range(window)]
    evaluated = x.new_empty(window, *lines[0].shape)
    form.evaluate(lines, evaluated)
    for row, line in zip(out, evaluated):
        form.evaluate([line[:, :, j : j + tile * (across - 1) + 1 : tile] for j in range(window)], row)


def _output_tiles(m: Tensor, out: Tensor, form: Form) -> None:
    """A^T m A for every tile: m (6, 6, B, strip, across, O) -> out (B, 4 * strip, 4 * across, O)."""
    tile = form.tile
    lines = m.new_empty(tile, *m.shape[1:])
    form.interpolate(m, list(lines))
    for i, line in enumerate(lines):
        form.interpolate(line, [out[:, i::tile, j::tile] for j in range(tile)])


def _evaluate4(d: list[Tensor], out: Tensor) -> None:
    torch.sub(d[4], d[2], alpha=SUM, out=out[0]).add_(d[0], alpha=PRODUCT)
    for point, other, plus, minus in ((P, Q, 1, 2), (Q, P, 3, 4)):
        even = torch.sub(d[4], d[2], alpha=other**2)
        odd = torch.sub(d[3], d[1], alpha=other**2)
        torch.add(even, odd, alpha=point, out=out[plus])
        torch.sub(even, odd, alpha=point, out=out[minus])
    torch.sub(d[5], d[3], alpha=SUM, out=out[5]).add_(d[1], alpha=PRODUCT)


def _interpolate4(m: Tensor, out: list[Tensor]) -> None:
    even_p, odd_p = m[1] + m[2], m[1] - m[2]
    even_q, odd_q = m[3] + m[4], m[3] - m[4]
    torch.add(even_p, even_q, out=out[0]).add_(m[0])
    torch.mul(odd_p, P, out=out[1]).add_(odd_q, alpha=Q)
    torch.mul(even_p, P**2, out=out[2]).add_(even_q, alpha=Q**2)
    torch.mul(odd_p, P**3, out=out[3]).add_(odd_q, alpha=Q**3).add_(m[5])


def _evaluate2(d: list[Tensor], out: Tensor) -> None:
    torch.sub(d[2], d[0], out=out[0])
    torch.add(d[2], d[1], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[3], d[1], out=out[3])


def _interpolate2(m: Tensor, out: list[Tensor]) -> None:
    torch.add(m[1] + m[2], m[0], out=out[0])
    torch.add(m[1] - m[2], m[3], out=out[1])


F4 = Form(4, (0.0, P, -P, Q, -Q), _evaluate4, _interpolate4)
F2 = Form(2, (0.0, 1.0, -1.0), _evaluate2, _interpolate2)
