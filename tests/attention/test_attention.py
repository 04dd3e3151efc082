"""The door to attention: every backend against the formula in float64, and exchanging them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import SMALL
from support.examples import examples
from support.reference import random_model
from torch import Tensor

import ldm_core
from ldm_core.attention import BACKENDS, MultiHeadAttention, attention_layers, set_attention
from ldm_core.model import LatentDiffusion
from ldm_core.nn import attention_backends
from ldm_core.nn.attention_backends import chunked_attention
from ldm_core.nn.cpu import sdpa_runs_in_bfloat16

ON_CPU = [name for name in BACKENDS if name != "triton"]  # that one: test_kernels.py and test_gpu.py
EVERY = pytest.mark.parametrize("backend", ON_CPU)


def formula(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in float64, one query and head at a time."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = (k[b, h] @ q[b, h, i]) / math.sqrt(q.shape[-1])
                if causal:
                    scores[i + 1 :] = -math.inf
                out[b, h, i] = torch.softmax(scores, 0) @ v[b, h]
    return out


@EVERY
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [40, 64, 80, 160, 512])
def test_backends_are_the_formula(backend: str, causal: bool, size: int) -> None:
    torch.manual_seed(0)
    m = 19 if causal else 77
    q, k, v = torch.randn(2, 3, 19, size), torch.randn(2, 3, m, size), torch.randn(2, 3, m, size)
    expected = formula(q, k, v, causal)
    out = BACKENDS[backend](q, k, v, causal=causal)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < 6e-6  # float32 sums of up to 512 terms of size one: 1.5e-6 at most
    double = BACKENDS[backend](q.double(), k.double(), v.double(), causal=causal)
    assert (double - expected).abs().max() < 1e-13


@EVERY
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str)
def test_half_types_lose_only_their_own_rounding(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    if backend == "sdpa" and dtype == torch.bfloat16 and not sdpa_runs_in_bfloat16():
        pytest.skip("PyTorch's kernel needs AVX-512 on this CPU, and ATEN_CPU_CAPABILITY forbids it")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 300, 40).to(dtype) for _ in range(3))
    out = BACKENDS[backend](q, k, v)
    assert out.dtype == dtype
    assert (out.double() - formula(q, k, v, False)).abs().max() < tolerance


@EVERY
def test_strides_do_not_matter(backend: str) -> None:
    """The networks hand over views of (B, N, heads * D) projections."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 20, 3, 16).transpose(1, 2) for _ in range(3))
    assert not q.is_contiguous()
    straight = BACKENDS[backend](q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.allclose(BACKENDS[backend](q, k, v), straight, atol=1e-6, rtol=0)


@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    rows=st.integers(1, 7),
    causal=st.booleans(),
    gradients=st.booleans(),
    laid_out_anew=st.booleans(),
)
@examples(40)
def test_chunks_of_any_size_give_the_same(
    n: int, m: int, rows: int, causal: bool, gradients: bool, laid_out_anew: bool
) -> None:
    m = n if causal else m
    generator = torch.Generator().manual_seed(n * 41 + m)
    q, k, v = (
        torch.randn(1, x, 3, 8, dtype=torch.float64, generator=generator).transpose(1, 2) for x in (n, m, m)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_backends, "CHUNK_BYTES", 4 * 3 * m * rows)
        patch.setattr(attention_backends, "CACHED_BYTES", 8 * m * rows)
        patch.setattr(attention_backends, "MIN_ROWS", 1)
        patch.setattr(attention_backends, "MANY_KEYS", 0 if laid_out_anew else 100)
        with torch.set_grad_enabled(gradients):
            out = chunked_attention(q, k, v, causal=causal)
    assert (out - formula(q, k, v, causal)).abs().max() < 1e-13


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((1, 1, 2, 4), 200.0, dtype=torch.float16)
    for backend in ON_CPU:
        assert BACKENDS[backend](q, q, torch.ones_like(q)).isfinite().all()


def test_set_attention_exchanges_every_layer(bundled: LatentDiffusion) -> None:
    model = random_model(SMALL["sd1"])
    calls = []

    def counting(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        calls.append(q.shape)
        return BACKENDS["math"](q, k, v, causal=causal)

    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
    with torch.no_grad():
        before = model.unet(x, 5, context)
        set_attention(model.unet, counting)
        after = model.unet(x, 5, context)
    assert len(calls) == len(list(attention_layers(model.unet))) == 32
    assert (before - after).abs().max() < 1e-5
    set_attention(model, "chunked")
    assert {layer.attention for _, layer in attention_layers(model)} == {chunked_attention}


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; expected one of math, sdpa"):
        set_attention(torch.nn.Identity(), "flash")
    with pytest.raises(ValueError, match="Identity has no attention layers"):
        set_attention(torch.nn.Identity(), "math")
    with pytest.raises(ValueError, match="expected a torch module or a dataclass"):
        set_attention("model", "math")


def test_recording_collects_maps_and_restores_the_model(bundled: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(bundled)
    before = [layer.attention for _, layer in attention_layers(bundled)]
    plain = sampler.txt2img("fire", steps=2, seed=0, output="latent")
    with ldm_core.record_attention(bundled, where="attn2") as maps:
        recorded = sampler.txt2img("fire", steps=2, seed=0, output="latent")
    assert torch.equal(plain, recorded)
    assert [layer.attention for _, layer in attention_layers(bundled)] == before
    assert set(maps) == {name for name, _ in attention_layers(bundled) if "attn2" in name}
    finest = maps["unet.up.2.blocks.1.attention.blocks.0.attn2"]
    assert len(finest) == 2
    assert finest[0].shape == (2, 2, 64, 77)
    assert torch.allclose(finest[0].sum(-1), torch.ones(2, 2, 64), atol=1e-5)


def test_recording_restores_the_model_after_an_error(bundled: LatentDiffusion) -> None:
    before = [layer.attention for _, layer in attention_layers(bundled)]
    with pytest.raises(RuntimeError, match="stop"), ldm_core.record_attention(bundled):
        raise RuntimeError("stop")
    assert [layer.attention for _, layer in attention_layers(bundled)] == before
    with (
        pytest.raises(ValueError, match="no attention layer matches 'nothing'"),
        ldm_core.record_attention(bundled, "nothing"),
    ):
        pass


def test_cross_attention_takes_another_width() -> None:
    layer = MultiHeadAttention(32, 4, context_channels=20)
    assert layer(torch.randn(2, 9, 32), torch.randn(2, 77, 20)).shape == (2, 9, 32)


@torch.no_grad()
def test_a_layer_keeps_nothing_between_calls() -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2, context_channels=8)
    x, context = torch.randn(1, 5, 16), torch.randn(1, 3, 8)
    state = set(vars(layer))
    first = layer(x, context)
    assert torch.equal(layer(x, context), first)
    context.numpy()[:] += 1
    changed = layer(x, context)
    assert not torch.equal(changed, first)
    layer.to_v.weight.data.mul_(2)
    doubled = layer(x, context)
    assert not torch.equal(doubled, changed)
    hook = layer.to_k.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 3,))
    assert not torch.equal(layer(x, context), doubled)
    hook.remove()
    assert torch.equal(layer(x, context), doubled)
    assert set(vars(layer)) == state
    for copied in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(copied(x, context), doubled)


@torch.no_grad()
def test_chunks_in_bfloat16_lose_only_bfloat16s_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, weights and the result are each rounded to 8 bits once (0.0043 in all); sums are float32's."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention_backends, "CACHED_BYTES", 100_000)
    q, k, v = (torch.randn(2, 4, 300, 40).bfloat16() for _ in range(3))
    exact = attention_backends.math_attention(q.double(), k.double(), v.double())
    error = (chunked_attention(q, k, v).double() - exact).square().mean().sqrt() / exact.std()
    assert error < 2**-6


@torch.no_grad()
def test_auto_takes_chunks_in_bfloat16_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(attention_backends, "chunked_attention", lambda *qkv, causal: taken.append(causal))
    monkeypatch.setattr(attention_backends, "sdpa_attention", lambda *qkv, causal: None)
    monkeypatch.setattr(attention_backends, "sdpa_runs_in_bfloat16", lambda: True)
    q, short = torch.randn(1, 1, 300, 8).bfloat16(), torch.randn(1, 1, 15, 8).bfloat16()
    for has_it in (False, True):
        monkeypatch.setattr(attention_backends, "chunks_win_in_bfloat16", lambda has_it=has_it: has_it)
        attention_backends.auto_attention(q, q, q)
        attention_backends.auto_attention(q, short, short)
        attention_backends.auto_attention(q, q, q, causal=True)
        attention_backends.auto_attention(q.float(), q.float(), q.float())
        assert len(taken) == int(has_it)
    monkeypatch.setattr(attention_backends, "sdpa_runs_in_bfloat16", lambda: False)
    attention_backends.auto_attention(short, short, short, causal=True)
    assert taken == [False, True]
