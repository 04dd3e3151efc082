"""Winograd's 3x3 convolution, F(4x4, 3x3): a quarter of the multiplications.

Lavin and Gray 2016 (arXiv:1509.09308): a tile of 4x4 outputs depends on 6x6 inputs. The kernel and the inputs
are taken as polynomials, evaluated at six points, multiplied pointwise and interpolated. In two dimensions

    Y = A^T [ (G w G^T) * (B^T d B) ] A

needs 36 products for 16 outputs where the definition needs 144. Summed over the channels, the product `*`
becomes 36 matrix products, which take most of the time.

The points are 0, +-5/8, +-3/2 and infinity instead of the usual 0, +-1, +-2. With the usual points the error
against float64 is four times as large; with these it equals that of PyTorch's convolution with AVX2
instructions (docs/performance.md). Barabasz et al. 2020 (arXiv:1803.10986) explain why points of magnitude
near one are good.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TILE = 4  # outputs of a tile along an axis
WINDOW = 6  # inputs of a tile along an axis, which is also the number of points
WORKSPACE_BYTES = 32 * 2**20  # memory for the tiles that are processed together; about the size of the caches

P, Q = 0.625, 1.5  # the points other than 0 and infinity are P, -P, Q, -Q
SUM, PRODUCT = P * P + Q * Q, P * P * Q * Q


def kernel_transform() -> Tensor:
    """G (6, 3), float64: evaluates a kernel at the points and divides by the Lagrange denominators."""
    points = [0.0, P, -P, Q, -Q]
    rows = []
    for i, point in enumerate(points):
        denominator = math.prod(point - other for k, other in enumerate(points) if k != i)
        rows.append([point**power / denominator for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def transform_weight(weight: Tensor) -> Tensor:
    """G w G^T for all channels: weight (O, C, 3, 3) -> (36, O, C), four times as many values."""
    g = kernel_transform()
    both_axes = torch.kron(g, g).to(weight)  # (36, 9)
    if weight.is_contiguous(memory_format=torch.channels_last):
        taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # (O, 9, C), a view
        return (both_axes @ taps).transpose(0, 1)
    return (both_axes @ weight.flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2])


def winograd_conv2d(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution of stride 1 and zero padding 1: (B, C, h, w) -> (B, O, h, w), channels-last.

    transformed: `transform_weight(weight)`, (36, O, C). Not differentiable. Processes the image in strips of
    tiles, so that the memory needed in addition to the result stays near `WORKSPACE_BYTES`.
    """
    batch, channels, h, w = x.shape
    outputs = transformed.shape[1]
    down, across = -(-h // TILE), -(-w // TILE)  # tiles
    result = x.new_empty(batch, down * TILE, across * TILE, outputs)

    tile_row_bytes = WINDOW**2 * batch * across * (channels + outputs) * x.element_size()
    rows = min(down, max(1, WORKSPACE_BYTES // tile_row_bytes))
    values = x.new_empty(WINDOW**2 * batch * rows * across * channels)
    products = x.new_empty(WINDOW**2 * batch * rows * across * outputs)
    # Only a strip of the image is padded; a padded copy of the whole image would be as large as the result.
    bordered = x.new_zeros(batch, rows * TILE + 2, across * TILE + 2, channels)
    for first in range(0, down, rows):
        strip = min(rows, down - first)
        above = 1 if first == 0 else 0
        inside = x[:, :, first * TILE - 1 + above : (first + strip) * TILE + 1].permute(0, 2, 3, 1)
        bordered[:, above : above + inside.shape[1], 1 : w + 1] = inside
        bordered[:, above + inside.shape[1] :] = 0
        tiles = (WINDOW, WINDOW, batch, strip, across)
        d = values[: values.numel() // rows * strip].view(*tiles, channels)
        m = products[: products.numel() // rows * strip].view(*tiles, outputs)
        _input_tiles(bordered[:, : strip * TILE + 2], d)
        torch.bmm(d.view(WINDOW**2, -1, channels), transformed.mT, out=m.view(WINDOW**2, -1, outputs))
        _output_tiles(m, result[:, first * TILE : (first + strip) * TILE])
    if bias is not None:
        result += bias
    return result[:, :h, :w].permute(0, 3, 1, 2)


def _input_tiles(x: Tensor, out: Tensor) -> None:
    """B^T d B for every tile: x (B, 4 * strip + 2, 4 * across + 2, C) -> out (6, 6, B, strip, across, C)."""
    strip, across = out.shape[3:5]
    lines = [x[:, i : i + TILE * (strip - 1) + 1 : TILE] for i in range(WINDOW)]
    evaluated = x.new_empty(WINDOW, *lines[0].shape)
    _evaluate(lines, evaluated)
    for row, line in zip(out, evaluated):
        _evaluate([line[:, :, j : j + TILE * (across - 1) + 1 : TILE] for j in range(WINDOW)], row)


def _output_tiles(m: Tensor, out: Tensor) -> None:
    """A^T m A for every tile: m (6, 6, B, strip, across, O) -> out (B, 4 * strip, 4 * across, O)."""
    lines = m.new_empty(TILE, *m.shape[1:])
    _interpolate(m, list(lines))
    for i, line in enumerate(lines):
        _interpolate(line, [out[:, i::TILE, j::TILE] for j in range(TILE)])


def _evaluate(d: list[Tensor], out: Tensor) -> None:
    """B^T d along one axis: evaluate 6 inputs at the 6 points."""
    torch.sub(d[4], d[2], alpha=SUM, out=out[0]).add_(d[0], alpha=PRODUCT)
    for point, other, plus, minus in ((P, Q, 1, 2), (Q, P, 3, 4)):
        even = torch.sub(d[4], d[2], alpha=other**2)
        odd = torch.sub(d[3], d[1], alpha=other**2)
        torch.add(even, odd, alpha=point, out=out[plus])
        torch.sub(even, odd, alpha=point, out=out[minus])
    torch.sub(d[5], d[3], alpha=SUM, out=out[5]).add_(d[1], alpha=PRODUCT)


def _interpolate(m: Tensor, out: list[Tensor]) -> None:
    """A^T m along one axis: interpolate 4 outputs from 6 products."""
    even_p, odd_p = m[1] + m[2], m[1] - m[2]
    even_q, odd_q = m[3] + m[4], m[3] - m[4]
    torch.add(even_p, even_q, out=out[0]).add_(m[0])
    torch.mul(odd_p, P, out=out[1]).add_(odd_q, alpha=Q)
    torch.mul(even_p, P**2, out=out[2]).add_(even_q, alpha=Q**2)
    torch.mul(odd_p, P**3, out=out[3]).add_(odd_q, alpha=Q**3).add_(m[5])
