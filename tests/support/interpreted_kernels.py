"""The Triton kernels against float64 mathematics, in Triton's interpreter: test_kernels.py runs this file.

Not collected by itself, since TRITON_INTERPRET=1 must be set before the kernels are imported and would then
hold for every other test of the process. No bfloat16 here: the interpreter's dot product is wrong for it.

Errors are the largest difference over the largest value. float16 rounds the weights and the result to 11
bits each, 2e-3 in all; float32 sums in another order than float64's, 2e-6.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

import pytest
import torch
from support.configs import SMALL
from torch import Tensor, nn

from ldm_core import set_attention
from ldm_core.kernels import set_kernels, triton_attention
from ldm_core.kernels.flash_attention import flash_attention
from ldm_core.kernels.geglu import geglu
from ldm_core.kernels.group_norm_silu import group_norm, group_norm_silu
from ldm_core.nn import blocks as layers
from ldm_core.nn.blocks import ResBlock
from ldm_core.testing import check_attention
from ldm_core.testing.attention import formula
from ldm_core.unet import UNet
from ldm_core.unet.transformer import SpatialTransformer, TransformerBlock

assert os.environ.get("TRITON_INTERPRET") == "1"

BOUND = {torch.float32: 2e-6, torch.float16: 2e-3}
HEADS = (32, 40, 48, 64, 72, 80, 96, 128, 160)
LENGTHS = (1, 15, 16, 77, 255, 1024)
LAYOUTS = ("heads first", "heads last", "fused qkv", "transposed", "odd strides")
TYPES = pytest.mark.parametrize("dtype", BOUND, ids=str)


def error(result: Tensor, expected: Tensor) -> float:
    return float(((result.detach().double() - expected).abs().max() / expected.abs().max()).detach())


def laid_out(layout: str, dtype: torch.dtype, heads: int, n: int, m: int, d: int) -> list[Tensor]:
    """q, k, v of two images in one of the ways that a network or a user could hold them."""
    torch.manual_seed(d * 1000 + n + m)
    lengths = (n, m, m)
    if layout == "heads first":
        return [torch.randn(2, heads, length, d).to(dtype) for length in lengths]
    if layout == "heads last":
        return [torch.randn(2, length, heads, d).to(dtype).transpose(1, 2) for length in lengths]
    if layout == "fused qkv":  # slices of one projection, of which only the first rows are used
        fused = torch.randn(2, max(lengths), 3 * heads * d).to(dtype)
        parts = zip(fused.chunk(3, dim=-1), lengths)
        return [part.unflatten(-1, (heads, d))[:, :length].transpose(1, 2) for part, length in parts]
    if layout == "transposed":  # D is not the last in memory
        return [torch.randn(2, heads, d, length).to(dtype).transpose(2, 3) for length in lengths]
    return [torch.randn(2, heads, length, d + 3).to(dtype)[..., 1 : d + 1] for length in lengths]


def expect_formula(
    dtype: torch.dtype, d: int, n: int, m: int, causal: bool, layout: str, heads: int = 2
) -> None:
    q, k, v = laid_out(layout, dtype, heads, n, m, d)
    out = flash_attention(q, k, v, causal=causal)
    assert out.dtype == dtype
    assert out.transpose(1, 2).is_contiguous(), "heads merge into (B, N, heads * D) for free"
    assert error(out, formula(q, k, v, causal=causal)) <= BOUND[dtype]


# Every layout and type, causal and not, heads in one part and in two, lengths that fill no block.
SOME = [
    (torch.float32, 40, 17, 17, True, "heads last"),
    (torch.float32, 80, 16, 15, False, "odd strides"),
    (torch.float32, 72, 1, 20, False, "transposed"),
    (torch.float16, 64, 77, 77, True, "heads last"),
    (torch.float16, 72, 16, 77, False, "heads first"),
    (torch.float16, 96, 15, 15, True, "fused qkv"),
    (torch.float16, 160, 15, 40, False, "heads last"),
]
# With these, every head size, length, layout and type at least once, in a few of the many combinations.
MORE = [
    (torch.float32, 32, 15, 16, False, "heads first"),
    (torch.float32, 40, 77, 77, True, "heads last"),
    (torch.float32, 72, 1, 77, False, "transposed"),
    (torch.float32, 160, 16, 77, False, "fused qkv"),
    (torch.float16, 40, 255, 77, False, "heads last"),
    (torch.float16, 40, 255, 255, True, "fused qkv"),
    (torch.float16, 48, 77, 1, False, "odd strides"),
    (torch.float16, 80, 77, 255, False, "transposed"),
    (torch.float16, 96, 15, 15, True, "heads last"),
    (torch.float16, 128, 1, 1, True, "heads first"),
    (torch.float16, 160, 77, 77, False, "heads last"),
]
COVER = [*SOME, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


@pytest.mark.parametrize("case", COVER, ids=str)
def test_attention_is_the_formula(case: tuple[torch.dtype, int, int, int, bool, str]) -> None:
    expect_formula(*case)


@pytest.mark.parametrize("m", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_long_sequence_needs_many_blocks(m: int) -> None:
    expect_formula(torch.float16, 40, 16, m, False, "heads last", heads=1)


@pytest.mark.exhaustive  # a quarter of an hour of interpreted blocks
@TYPES
@pytest.mark.parametrize("d", HEADS)
@pytest.mark.parametrize("n", LENGTHS)
def test_attention_is_the_formula_on_the_whole_grid(dtype: torch.dtype, d: int, n: int) -> None:
    for (m, causal), layout in itertools.product([(77, False), (n, False), (n, True)], LAYOUTS):
        if n < 255 or layout == "heads last":
            expect_formula(dtype, d, n, m, causal, layout, heads=2 if n < 255 else 1)


@pytest.mark.parametrize("d", [8, 20, 512, *(pytest.param(d, marks=pytest.mark.slow) for d in (16, 33, 88))])
def test_sizes_that_no_published_model_has_work_too(d: int) -> None:
    expect_formula(torch.float16, d, 20, 20, True, "heads last")


def test_tensors_that_do_not_fit_are_refused() -> None:
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    refused: list[tuple[str, tuple[Tensor, ...], bool]] = [
        ("expected q (B, heads, N, D), k and v (B, heads, M, D)", (q, k, q), False),
        ("float16, bfloat16 or float32 for all", (q.double(), k.double(), k.double()), False),
        ("float16, bfloat16 or float32 for all", (q, k.half(), k.half()), False),
        ("as many keys as queries, got 5 and 3", (q, k, k), True),
        ("heads of at most 512", tuple(torch.randn(3, 1, 1, 4, 600)), False),
        ("at least one key", (q, k[:, :, :0], k[:, :, :0]), False),
    ]
    for words, tensors, causal in refused:
        with pytest.raises(ValueError, match=re.escape(words)):
            triton_attention(*tensors, causal=causal)


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((1, 1, 2, 4), 200.0, dtype=torch.float16)
    assert flash_attention(q, q, torch.ones_like(q)).isfinite().all()
    k = torch.full((1, 1, 70, 40), -1e4)  # all scores far below zero, in a block with a masked tail
    assert torch.allclose(flash_attention(-k[:, :, :3], k, torch.ones_like(k)), torch.ones(1, 1, 3, 40))


GRADIENTS = [
    (torch.float32, 64, 40, 40, True, "odd strides"),
    (torch.float16, 40, 77, 77, True, "fused qkv"),
    (torch.float16, 80, 70, 33, False, "heads last"),
    pytest.param((torch.float32, 40, 20, 77, False, "heads last"), marks=pytest.mark.slow),
    pytest.param((torch.float16, 160, 20, 77, False, "heads last"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients_are_those_of_the_formula(case: tuple[torch.dtype, int, int, int, bool, str]) -> None:
    dtype, d, n, m, causal, layout = case
    inputs = [x.detach().requires_grad_() for x in laid_out(layout, dtype, 1, n, m, d)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = flash_attention(*inputs, causal=causal), formula(*exact, causal=causal)
    d_out = torch.randn(out.shape).to(dtype)
    ours = torch.autograd.grad(out, inputs, d_out)
    theirs = torch.autograd.grad(expected, exact, d_out.double())
    for gradient, other in zip(ours, theirs):
        assert gradient.dtype == dtype
        assert error(gradient, other) <= BOUND[dtype]


def test_keys_that_no_query_sees_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, and not what was in memory before, for which NaN stands here."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kw: empty(*args, **kw).fill_(torch.nan))
    q, k, v = (x.requires_grad_() for x in laid_out("heads last", torch.float16, 1, 0, 70, 40))
    gradients = torch.autograd.grad(flash_attention(q, k, v), (q, k, v), torch.empty_like(q))
    assert [tuple(x.shape) for x in gradients] == [(2, 1, 0, 40), (2, 1, 70, 40), (2, 1, 70, 40)]
    assert not any(x.count_nonzero() for x in gradients)


@pytest.mark.exhaustive  # minutes of interpreted float32 blocks
def test_the_contract_of_attention_holds() -> None:
    check_attention(triton_attention, dtypes=(torch.float32, torch.float16), gradients=True)


@pytest.mark.slow  # imports PyTorch's compiler
def test_export_sees_one_operator() -> None:
    class Layer(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return triton_attention(q, k, v)

    tensors = tuple(laid_out("heads last", torch.float16, 1, 9, 77, 40))
    program = torch.export.export(Layer(), tensors)
    assert [str(node.target) for node in program.graph.nodes if "ldm_core" in str(node.target)] == [
        "ldm_core.flash_attention.default"
    ]
    assert torch.equal(program.module()(*tensors), flash_attention(*tensors))


@pytest.mark.slow  # imports PyTorch's compiler
def test_compiling_sees_through_the_kernel_and_its_gradient() -> None:
    inputs = [x.requires_grad_() for x in laid_out("heads last", torch.float16, 1, 9, 77, 40)]
    compiled = torch.compile(triton_attention, backend="aot_eager", fullgraph=True)
    plain, traced = triton_attention(*inputs), compiled(*inputs)
    assert torch.equal(plain, traced)
    for a, b in zip(torch.autograd.grad(plain.sum(), inputs), torch.autograd.grad(traced.sum(), inputs)):
        assert torch.equal(a, b)


# --- group norm with SiLU, and GEGLU --------------------------------------------------------------------

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
MAPS = [  # dtype, shape, layout, with SiLU: 1, 2, 3, 10 and 30 channels to a group, tiles of 64 x 64
    (torch.float32, (2, 96, 5, 15), CHANNELS_LAST, True),  # groups of 3, of which one is in two tiles
    (torch.float16, (1, 64, 9, 15), CONTIGUOUS, True),
    (torch.float16, (2, 96, 8, 9), CHANNELS_LAST, False),
    (torch.float32, (2, 32, 1, 1), CONTIGUOUS, False),
    pytest.param((torch.float32, (2, 320, 5, 7), CONTIGUOUS, True), marks=pytest.mark.slow),
    pytest.param((torch.float32, (1, 32, 64, 65), CHANNELS_LAST, True), marks=pytest.mark.slow),
    pytest.param((torch.float32, (1, 64, 150, 150), CHANNELS_LAST, False), marks=pytest.mark.slow),
    pytest.param((torch.float16, (1, 960, 8, 8), CHANNELS_LAST, True), marks=pytest.mark.slow),
    pytest.param((torch.float16, (1, 64, 33, 31), CONTIGUOUS, False), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_group_norm_is_the_formula(
    case: tuple[torch.dtype, tuple[int, ...], torch.memory_format, bool],
) -> None:
    dtype, shape, layout, silu = case
    torch.manual_seed(0)
    norm = layers.group_norm(shape[1], 1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(shape) * 3 + 5).to(dtype).to(memory_format=layout)
    plain, fused = (layers.norm_silu, group_norm_silu) if silu else (layers.normalise, group_norm)
    expected = plain(norm.double(), x.double())
    out = fused(norm.to(dtype), x)
    assert out.dtype == dtype
    assert out.stride() == x.stride()
    # the rounded weights are the function's own inputs, so the same ones are compared
    rounded = plain(norm.double(), x.double())
    assert error(out, rounded) <= BOUND[dtype]
    assert error(out, expected) <= 2 * BOUND[dtype]


def test_a_mean_far_from_zero_does_not_cancel() -> None:
    """The squares' mean less the mean's square would be 1e8 - 1e8 here, in 24 bits."""
    x = torch.randn(1, 32, 16, 20, generator=torch.Generator().manual_seed(0)) + 1e4
    norm = layers.group_norm(32, 1e-5)
    expected = layers.norm_silu(norm.double(), x.double())
    assert error(group_norm_silu(norm.float(), x), expected) < 3e-4  # x itself has 10 bits left below 1


def test_other_layouts_are_copied() -> None:
    norm, x = layers.group_norm(32, 1e-6), torch.randn(1, 32, 6, 4).transpose(2, 3)
    assert torch.allclose(group_norm_silu(norm, x), layers.norm_silu(norm, x), atol=1e-5)


@TYPES
def test_geglu_is_the_formula(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 9, 2 * 1280, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    assert error(geglu(x), layers.geglu(x.double())) <= BOUND[dtype]
    assert error(geglu(x[:, ::2, 4:100]), layers.geglu(x[:, ::2, 4:100].double())) <= BOUND[dtype]


@pytest.mark.slow
def test_gradients_of_the_fused_functions() -> None:
    torch.manual_seed(0)
    norm = layers.group_norm(64, 1e-5)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 64, 3, 5, requires_grad=True)
    inputs = [x, norm.weight, norm.bias]
    d_out = torch.randn(2, 64, 3, 5)
    for fused, plain in ((group_norm_silu, layers.norm_silu), (group_norm, layers.normalise)):
        ours = torch.autograd.grad(fused(norm, x), inputs, d_out)
        for a, b in zip(ours, torch.autograd.grad(plain(norm, x), inputs, d_out)):
            assert torch.allclose(a, b, atol=2e-5)
    rows = torch.randn(5, 24, requires_grad=True)
    (ours_geglu,) = torch.autograd.grad(geglu(rows).sum(), [rows])
    (theirs_geglu,) = torch.autograd.grad(layers.geglu(rows).sum(), [rows])
    assert torch.allclose(ours_geglu, theirs_geglu, atol=1e-5)


# --- all three as operators of PyTorch ------------------------------------------------------------------

LAST = torch.randn(1, 32, 3, 3).to(memory_format=CHANNELS_LAST)
OPERATORS = {
    "flash_attention": (*laid_out("heads last", torch.float16, 1, 9, 9, 40), True),
    "group_norm": (LAST, torch.ones(32), torch.zeros(32), 32, 1e-5, True),
    "geglu": (torch.randn(2, 3, 8),),
}
QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def well_behaved(name: str, checks: Sequence[str]) -> None:
    arguments = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in OPERATORS[name]]
    operator = getattr(torch.ops.ldm_core, name).default
    torch.library.opcheck(operator, tuple(arguments), test_utils=checks, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_shapes_and_a_schema_that_hold(name: str) -> None:
    well_behaved(name, QUICK_CHECKS)


@pytest.mark.exhaustive  # traces each operator and its gradient, with static and dynamic shapes
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_can_be_traced_with_dynamic_shapes(name: str) -> None:
    well_behaved(name, ("test_aot_dispatch_dynamic",))


# --- a whole network ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_block_of_kernels_is_the_plain_one() -> None:
    torch.manual_seed(0)
    res, block = ResBlock(32, 64, time_channels=8), TransformerBlock(64, 2, 16)
    both = nn.ModuleList([res, block])

    def output() -> Tensor:
        features = res(torch.ones(1, 32, 3, 3) * torch.arange(3), torch.ones(1, 8))
        return block(features.flatten(2).transpose(1, 2), torch.ones(1, 5, 16))

    with torch.no_grad():
        plain = output()
        set_kernels(both, "triton")
        set_attention(both, "triton")
        fused = output()
    assert res.norm_silu is group_norm_silu
    assert block.ff.geglu is geglu
    assert error(fused, plain.double()) < 1e-5


@torch.no_grad()
def test_channels_last_maps_are_not_copied() -> None:
    """Around a transformer: the norm keeps the layout, in which tokens are a view, and so does the result."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(64, 2, 1, 16)
    x, context = torch.randn(1, 64, 3, 5).to(memory_format=CHANNELS_LAST), torch.randn(1, 5, 16)
    plain = transformer(x, context)
    set_kernels(transformer, "triton")
    assert transformer.norm.normalise is group_norm
    normed, tokens = [], []
    transformer.norm.register_forward_hook(lambda module, args, out: normed.append(out))
    transformer.proj_in.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    out = transformer(x, context)
    assert normed[0].data_ptr() == tokens[0].data_ptr()
    assert tokens[0].is_contiguous()
    assert out.is_contiguous(memory_format=CHANNELS_LAST)
    assert error(out, plain.double()) < 1e-5


@pytest.mark.exhaustive  # a minute or two of interpreted blocks
def test_a_unet_of_kernels_is_the_plain_one() -> None:
    torch.manual_seed(0)
    unet = UNet(SMALL["sd1"].unet)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 64)
    with torch.no_grad():
        plain = unet(x, 5, context)
        set_kernels(unet, "triton")
        set_attention(unet, "triton")
        fused = unet(x, 5, context)
        set_kernels(unet, "torch")
        set_attention(unet, "auto")
        assert torch.equal(unet(x, 5, context), plain)
    assert not torch.equal(fused, plain)
    assert error(fused, plain.double()) < 1e-5
