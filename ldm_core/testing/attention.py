"""The contract of `ldm_core.attention.AttentionFunction`: the formula, for any shape and strides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_core.attention import AttentionFunction
from ldm_core.testing.contract import Contract, device_of, draw, isolated, relative_error
from ldm_core.testing.tensor_clauses import Case, check_result, check_tensor_function

# The largest error over the largest value, against the formula in float64 on the same rounded inputs. In
# 16-bit types, the weights and the result may be rounded.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
GRADIENT = 10  # tolerance factor of gradients, which pass through three products


class _Shape(NamedTuple):
    what: str
    n: int
    m: int
    causal: bool
    scale: float = 1.0  # of q; 1 in 16-bit types, whose rounding of large logits exceeds the tolerance


SHAPES = (
    _Shape("self-attention", 64, 64, False),
    _Shape("a prompt of 77 tokens", 24, 77, False),
    _Shape("more queries than keys", 130, 5, False),
    _Shape("one query and one key", 1, 1, False),
    _Shape("large logits", 16, 40, False, 30.0),
    _Shape("77 causal positions", 77, 77, True),
    _Shape("one causal position", 1, 1, True),
)


@isolated
def check_attention(
    function: AttentionFunction,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float64),
    device: torch.device | str | None = None,
    head_sizes: Sequence[int] = (40, 64, 160),
    causal: bool = True,
    gradients: bool = False,
    tolerance: float | None = None,
) -> None:
    """Check that an attention function meets its contract. Raises ContractError, which lists every violation.

    dtypes: those to check; most clauses use the first one.
    device: by default that of the function's weights, or the CPU.
    head_sizes: D; by default those of SD1 (40 and 160) and SD2 (64).
    causal: False for a function that is never used in a text encoder.
    gradients: also compare the gradients of q, k and v.
    tolerance: against the formula in float64, relative to the largest value; by default 1e-5 in float32,
        1e-12 in float64, 3e-2 in bfloat16 and 4e-3 in float16.
    """
    on = device_of(function) if device is None else torch.device(device)
    contract = Contract(function, "ldm_core.attention.AttentionFunction")

    def case(shape: _Shape, dtype: torch.dtype, head_size: int) -> Case:
        def heads(length: int, seed: int) -> Tensor:
            return draw(2, 3, length, head_size, seed=seed, dtype=dtype, device=on)

        arguments = {
            "q": heads(shape.n, 0) * shape.scale,
            "k": heads(shape.m, 1),
            "v": heads(shape.m, 2),
        }
        what = f"attention(q, k, v{', causal=True' if shape.causal else ''}) of {shape.what}"
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        if shape.scale > 1:
            limit *= 3  # rounding errors grow with the logits

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return function(q, k, v, causal=True) if shape.causal else function(q, k, v)

        return Case(function, what, call, arguments, limit)

    shapes = [shape for shape in SHAPES if causal or not shape.causal]
    for dtype in dtypes:
        first = case(shapes[0], dtype, head_sizes[0])
        check_result(contract, first, first.arguments["q"].shape, dtype, f"shape and dtype, in {dtype}")
    contract.raise_if_broken()
    for dtype, head_size, shape in itertools.product(dtypes, head_sizes, shapes):
        if shape.scale == 1 or dtype in (torch.float32, torch.float64):
            _check_formula(contract, case(shape, dtype, head_size), shape, dtype)
    if causal:
        _check_mask(contract, case(_Shape("9 positions", 9, 9, True), dtypes[0], head_sizes[0]))
    main = case(shapes[1], dtypes[0], head_sizes[0])
    _check_head_views(contract, main)
    check_tensor_function(contract, main)
    if gradients:
        for shape in shapes:
            _check_gradients(contract, case(shape, dtypes[0], head_sizes[0]), shape)
    contract.raise_if_broken()


def formula(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in float64 (Vaswani et al. 2017, equation 1)."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1) @ v


def _check_formula(contract: Contract, case: Case, shape: _Shape, dtype: torch.dtype) -> None:
    with contract.clause(
        f"formula, in {dtype} with heads of {case.arguments['q'].shape[-1]}",
        "networks are trained with softmax(q k^T / sqrt(D)) v; another scale or mask is another network",
    ) as clause:
        expected = formula(**case.arguments, causal=shape.causal)
        clause.expect_close(case(), expected, f"{case.what} to match the formula in float64", case.tolerance)


def _check_mask(contract: Contract, case: Case) -> None:
    with contract.clause("causal mask", "position i attends to positions 0..i only") as clause:
        result, length = case(), case.arguments["k"].shape[-2]
        for position in range(length):
            k, v = case.arguments["k"].clone(), case.arguments["v"].clone()
            k[..., position, :] += 1
            v[..., position, :] += 1
            other = case(k=k, v=v)
            changed = (
                ((other - result).abs().amax(dim=(0, 1, 3)) > case.tolerance).nonzero().flatten().tolist()
            )
            clause.expect(
                changed == list(range(position, length)),
                f"key and value {position} of {length} to be seen by the queries {position}..{length - 1}",
                f"seen by {changed}",
            )


def _check_head_views(contract: Contract, case: Case) -> None:
    with contract.clause(
        "head views",
        "heads are transposed views of (B, N, heads, D), and q, k and v may be slices of one tensor",
    ) as clause:
        views = case.mapped(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
        clause.expect_close(views(), case(), "transposed views to return the same", case.tolerance)
        shared = torch.cat([case.arguments["k"], case.arguments["v"]], dim=-1)
        k, v = shared.chunk(2, dim=-1)
        clause.expect_close(case(k=k, v=v), case(), "slices of one tensor to return the same", case.tolerance)


def _check_gradients(contract: Contract, case: Case, shape: _Shape) -> None:
    with (
        contract.clause("gradients", "training backpropagates through attention") as clause,
        torch.enable_grad(),
    ):
        inputs = [tensor.clone().requires_grad_() for tensor in case.arguments.values()]
        exact = [tensor.double().requires_grad_() for tensor in case.arguments.values()]
        expected = formula(*exact, causal=shape.causal)
        weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64, device=expected.device)
        weights = weights.reshape(expected.shape)
        theirs = torch.autograd.grad((expected * weights).sum(), exact)
        result = case.call(*inputs)
        ours = torch.autograd.grad((result * weights.to(result.dtype)).sum(), inputs)
        largest = max(float(gradient.abs().max()) for gradient in theirs)
        for name, a, b in zip("qkv", ours, theirs):
            error = relative_error(a, b) * float(b.abs().max()) / largest
            limit = GRADIENT * case.tolerance
            clause.expect(
                error <= limit, f"the gradient of {name} in {case.what}, within {limit:g}", f"{error:.2g}"
            )
