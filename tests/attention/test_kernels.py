"""The Triton kernels without a GPU: interpreted, compiled ahead of time, refused where they cannot run."""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.configs import SMALL
from torch import Tensor

from ldm_core import set_attention
from ldm_core.attention import BACKENDS
from ldm_core.kernels import set_kernels, triton_attention
from ldm_core.kernels.launch import launch
from ldm_core.kernels.tiles import backward_tiles, forward_tile, split, tma_tile, tma_width
from ldm_core.nn import blocks as layers
from ldm_core.unet import UNet

ROOT = Path(__file__).parents[2]
INTERPRETED = ["tests/support/interpreted_kernels.py", "tests/support/interpreted_tma.py"]
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: it is made for Linux only")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")


def run(*command: str, **environment: str) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), variables.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env={**variables, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_kernels_are_the_mathematics() -> None:
    run("-m", "pytest", "-q", *INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow  # half a minute of interpreted blocks
def test_kernels_are_the_mathematics_in_more_cases() -> None:
    run("-m", "pytest", "-q", "-m", "slow", *INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.exhaustive  # every head size, length, layout and type
@pytest.mark.timeout(7200)
def test_kernels_are_the_mathematics_on_the_whole_grid() -> None:
    run("-m", "pytest", "-q", "-m", "exhaustive", *INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow  # compiles kernels ahead of time
def test_some_tiles_compile_as_the_page_says() -> None:
    run("docs/attention_table.py", "--check", "--quick", TRITON_INTERPRET="0")


@pytest.mark.slow  # compiles kernels ahead of time
@needs_triton
def test_the_fused_functions_compile() -> None:
    run("-m", "pytest", "-q", "tests/support/compiled_kernels.py", TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.slow  # 18 kernels more
def test_the_fused_functions_compile_for_each_chip_and_type() -> None:
    run("-m", "pytest", "-q", "-m", "slow", "tests/support/compiled_kernels.py", TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.exhaustive  # compiles some hundred kernels
@pytest.mark.timeout(7200)
def test_every_tile_compiles_as_the_page_says() -> None:
    run("docs/attention_table.py", "--check", TRITON_INTERPRET="0")


@pytest.mark.parametrize("d", [32, 40, 48, 64, 72, 80, 96, 128, 160])
def test_tiles_waste_at_most_a_fifth(d: int) -> None:
    wide, rest = split(d)
    assert wide + rest >= d
    assert (wide + rest) / d <= 1.2
    assert all(part & (part - 1) == 0 and (part == 0 or part >= 16) for part in (wide, rest))


def test_every_head_size_has_a_tile() -> None:
    for d in range(1, 513):
        wide, rest = split(d)
        assert d <= wide + rest < 2 * max(d, 16)
        for dtype in (torch.float16, torch.float32):
            assert forward_tile(d, dtype, 80)
            assert len(backward_tiles(d, dtype)) == 2
    assert forward_tile(64, torch.float16, 90) != forward_tile(64, torch.float16, 89)
    assert [forward_tile(80, torch.float16, 90, queries=n).queries for n in (1024, 1025)] == [64, 128]
    assert forward_tile(160, torch.float16, 80, queries=64).queries == 128, "no shorter tile fits there"
    limits = [forward_tile(40, torch.float16, 80, causal=causal).registers for causal in (False, True)]
    assert limits == [None, 255], "only the causal kernel spills without"
    for chip, d, dtype in (
        (80, 40, torch.half),
        (120, 40, torch.half),
        (90, 80, torch.half),
        (90, 40, torch.float),
    ):
        assert tma_tile(d, dtype, chip) is None
    assert [tma_width(d) for d in (1, 16, 17, 40, 64)] == [16, 16, 32, 64, 64]
    with pytest.raises(ValueError, match="heads of at most 512, got 513"):
        forward_tile(513, torch.float16, 80)
    with pytest.raises(ValueError, match=r"needs compute capability 8.0 or newer, this GPU has 7.5"):
        forward_tile(64, torch.float16, 75)


class Stub:
    """A kernel that notes its launches, and a tensor on a device that this machine lacks."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.launches: list[tuple[int, tuple[int, ...], dict[str, object]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.launches.append(
            (torch.cuda.current_device(), grid, options)
        )


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever device is the current one, which is the current one again afterwards."""
    current, switches = [0], []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        switches.append(wanted.index)
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    for name, index in (("cuda:1", 1), ("cuda:0", 0), ("cpu", 0)):
        stub = Stub(name)
        launch(stub, (2, 3), stub, on=stub, num_warps=4)  # type: ignore[arg-type]
        assert stub.launches == [(index, (2, 3), {"num_warps": 4, "enable_fp_fusion": True})]
        assert current == [0]
    assert switches == [1], "the current device is not switched to itself"


def test_every_kernel_is_launched_by_that_function() -> None:
    """`kernel[grid](...)` stands nowhere else."""
    for path in (ROOT / "ldm_core" / "kernels").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        direct = [ast.unparse(call) for call in calls if isinstance(call.func, ast.Subscript)]
        assert len(direct) == (path.name == "launch.py"), f"{path.name}: {direct}"


def test_the_benchmark_compares_each_kernel_before_it_times_it() -> None:
    path = ROOT / "examples" / "benchmarks" / "attention_gpu.py"
    spec = importlib.util.spec_from_file_location("attention_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    sets = benchmark.inputs((1, 2, 70, 9, 8), torch.bfloat16, "cpu")
    assert len(sets) == benchmark.ROTATIONS
    assert benchmark.rotations((2, 8, 4096, 4096, 40)) * 3 * 2 * 8 * 4096 * 40 * 2 > benchmark.CACHE_BYTES
    seen = []

    def right(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        seen.append(q.data_ptr())
        return BACKENDS["math"](q, k, v)

    assert benchmark.difference(right, *sets[0]) <= benchmark.BOUND[torch.bfloat16]
    assert benchmark.difference(lambda q, k, v: right(q, k, v) * 1.1, *sets[0]) > 0.05
    assert math.isnan(benchmark.difference(lambda q, k, v: right(q, k, v) * math.nan, *sets[0]))
    call = benchmark.timed(right, sets, back=False)
    seen.clear()
    for _ in range(2 * len(sets)):
        call()
    assert len(set(seen)) == len(sets), "the inputs rotate"
    assert [x.shape for x in benchmark.timed(right, sets, back=True)()] == [x.shape for x in sets[0]]


@no_gpu
@needs_triton
def test_without_a_gpu_the_error_says_so() -> None:
    model = UNet(SMALL["sd1"].unet)
    before = model.norm_silu
    with pytest.raises(ValueError, match="attention backend 'triton' needs a CUDA device"):
        set_attention(model, "triton")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        set_kernels(model, "triton")
    assert model.norm_silu is before is layers.norm_silu
    with pytest.raises(ValueError, match="attention backend 'triton' needs a CUDA device"):
        triton_attention(*torch.randn(3, 1, 1, 4, 8))
    assert BACKENDS["auto"](*torch.randn(3, 1, 1, 4, 8)).isfinite().all(), "auto falls back"


def test_without_triton_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_core.kernels.requirements.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package triton.*pip install triton"):
        set_attention(UNet(SMALL["sd1"].unet), "triton")


def test_switching_kernels_names_what_it_cannot_do() -> None:
    model = UNet(SMALL["sd1"].unet)
    with pytest.raises(ValueError, match="unknown kernels 'cuda'; expected torch or triton"):
        set_kernels(model, "cuda")
    with pytest.raises(ValueError, match="Linear has no block that a kernel could be set for"):
        set_kernels(torch.nn.Linear(2, 2), "torch")
    set_kernels(model, "torch")
    assert model.norm_silu is layers.norm_silu


@needs_triton
def test_heads_that_are_too_far_apart_are_refused() -> None:
    from ldm_core.kernels.flash_attention import _strides

    near = torch.empty((1, 2, 4, 8), device="meta")
    far = torch.empty_strided((1, 2, 4, 8), (2**35, 2**34, 8, 1), device="meta")
    assert _strides(near)[0] == 8
    with pytest.raises(ValueError, match=r"the heads of one image take 8 \* 2\^31 values or more"):
        _strides(near, far)
