"""The attention kernel with descriptors, in Triton's interpreter: test_kernels.py runs this file.

As `interpreted_kernels.py`, whose bounds and layouts it takes.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.interpreted_kernels import BOUND, error, expect_formula, laid_out

from ldm_core.kernels.flash_attention import flash_attention
from ldm_core.kernels.flash_forward_tma import flash_forward_tma
from ldm_core.kernels.launch import launch
from ldm_core.testing.attention import formula

# D, N, M, layout: 1, 64, 77, 200 and 256 keys in blocks of 128, ragged rows, heads padded to 64 and to 16.
DESCRIBED = [
    (40, 70, 77, "heads last"),
    (64, 9, 200, "heads first"),
    pytest.param((40, 64, 1, "heads first"), marks=pytest.mark.slow),
    pytest.param((40, 129, 64, "fused qkv"), marks=pytest.mark.slow),
    pytest.param((40, 33, 200, "heads last"), marks=pytest.mark.slow),
    pytest.param((64, 64, 256, "fused qkv"), marks=pytest.mark.slow),
    pytest.param((64, 1, 1, "heads last"), marks=pytest.mark.slow),
    pytest.param((64, 100, 64, "heads last"), marks=pytest.mark.slow),
    pytest.param((64, 65, 77, "heads first"), marks=pytest.mark.slow),
    pytest.param((8, 20, 20, "heads last"), marks=pytest.mark.slow),
]


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """As on Hopper; of each launch, whether it is of the kernel with descriptors."""
    launches: list[bool] = []

    def counted(kernel: Any, *arguments: Any, **options: Any) -> None:
        launches.append(kernel is flash_forward_tma)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr("ldm_core.kernels.flash_attention.capability", lambda device: 90)
    monkeypatch.setattr("ldm_core.kernels.flash_attention.launch", counted)
    return launches


@pytest.mark.parametrize("case", DESCRIBED, ids=str)
def test_tiles_by_descriptors_are_the_formula(case: tuple[int, int, int, str], described: list[bool]) -> None:
    d, n, m, layout = case
    expect_formula(torch.float16, d, n, m, False, layout, heads=1)
    assert described == [True]


def test_what_no_descriptor_can_name_takes_the_other_kernel(described: list[bool]) -> None:
    """The causal mask, strides of 86 bytes, an address of 8 bytes, one head for both images."""
    expect_formula(torch.float16, 40, 9, 9, True, "heads last", heads=1)
    expect_formula(torch.float16, 40, 9, 9, False, "odd strides", heads=1)
    shifted = torch.randn(1, 1, 10, 40).half().flatten()[4:-36].view(1, 1, 9, 40)
    shared = torch.randn(1, 1, 9, 40).half().expand(2, -1, -1, -1)
    for x in (shifted, shared):
        assert error(flash_attention(x, x, x), formula(x, x, x, causal=False)) <= BOUND[torch.float16]
    assert described == [False] * 4


def test_gradients_with_descriptors(described: list[bool]) -> None:
    """The sums that the backward pass reads are the same as the other kernel's."""
    q, k, v = laid_out("heads last", torch.float16, 1, 40, 33, 40)
    lse = torch.ops.ldm_core.flash_attention(q, k, v, False)[1]
    exact = (q.double() @ k.double().mT * 40**-0.5).logsumexp(-1) * math.log2(math.e)
    assert described == [True]
    assert error(lse, exact) < 1e-3
