"""How long work takes on a GPU.

`replayed` measures the GPU alone: a CUDA graph of many calls is replayed, so that no time of Python is in
the figure. `called` measures what a user waits for, Python included. On a CPU, which only a dry run uses,
`replayed` times a plain call of each set of inputs.
"""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Inputs = tuple[Any, ...]
REPLAY = 0.002  # seconds that a replay should take at least, so that its launch does not count
ROUND = 0.1  # seconds of a round of plain calls
DRY_ROUND = 0.001
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"


def rotation(make: Callable[[], Inputs], device: str, most: int = 64) -> list[Inputs]:
    """Several sets of inputs that together are twice as large as the L2 cache: calls take them in turn.

    One set alone would be read from the cache, which it is not in a network.
    """
    first = make()
    if device == "cpu":
        return [first, make()]
    size = sum(x.numel() * x.element_size() for x in first if isinstance(x, Tensor))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = min(most, max(2, math.ceil(2 * cache / size)))
    return [first, *(make() for _ in range(count - 1))]


def replayed(call: Callable[..., Any], sets: Sequence[Inputs], rounds: int) -> dict[str, float]:
    """Median seconds of a call, and the spread of the rounds (largest less smallest, over the median).

    call: returns a tensor or a tuple of tensors. sets: its inputs, one set after the other.
    Raises RuntimeError if a replay does not write what a plain call returns.
    """
    if not torch.cuda.is_available():
        return _summary([_once(lambda inputs=inputs: call(*inputs)) for inputs in sets], 1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile, choose algorithms and allocate before the capture
        for inputs in (*sets, *sets[:2]):
            call(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph, outputs = _captured(call, sets)
    _check_replay(call, sets, graph, outputs)
    del outputs
    passes = min(50, math.ceil(REPLAY / min(_replays(graph, 3))))
    if passes > 1:
        graph, _ = _captured(call, [*sets] * passes)
    return _summary(_replays(graph, rounds), passes * len(sets))


def called(call: Callable[[], Any], rounds: int, per: int = 1) -> dict[str, float]:
    """Median seconds of a plain call, by the host's clock with the GPU finished before and after.

    per: how many pieces of work a call is; the seconds are of one.
    """
    _finish()
    call()
    call()
    _finish()
    calls = math.ceil((ROUND if torch.cuda.is_available() else DRY_ROUND) / _once(call))
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        _finish()
        times.append(time.perf_counter() - begin)
    return _summary(times, calls * per)


def _once(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    _finish()
    return time.perf_counter() - begin


def kernels(call: Callable[[], Any], largest: int = 12) -> dict[str, Any]:
    """How many kernels a call launches, their time, and the names, counts and seconds of the largest.

    On a CPU these are PyTorch's operators.
    """
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    call()
    with profile(activities=activities) as profiler:
        call()
        _finish()
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    events = [
        e
        for e in profiler.events()
        if e.device_type == kind and not e.name.startswith("Mem") and not e.is_user_annotation
    ]
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for event in events:
        counts[event.name] += 1
        seconds[event.name] += event.time_range.elapsed_us() / 1e6
    names = [name for name, _ in seconds.most_common(largest)]
    return {
        "kernels": len(events),
        "kernel_seconds": sum(seconds.values()),
        "largest_kernels": [[name[:80], counts[name], seconds[name]] for name in names],
    }


def clocks() -> dict[str, str] | None:
    """The GPU's clocks, temperature, power and reasons for throttling now; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return dict(zip(CLOCKS.split(","), done.stdout.strip().split(", ")))


def _captured(call: Callable[..., Any], sets: Sequence[Inputs]) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call(*inputs) for inputs in sets]
    return graph, outputs


def _check_replay(
    call: Callable[..., Any], sets: Sequence[Inputs], graph: torch.cuda.CUDAGraph, outputs: list[Any]
) -> None:
    """Compare what a replay writes over outputs of NaN with plain calls."""
    for tensor in itertools.chain(*map(_tensors, outputs)):
        tensor.detach().fill_(math.nan)
    graph.replay()
    for inputs, output in zip(sets, outputs):
        for got, expected in zip(_tensors(output), _tensors(call(*inputs))):
            # Some gradients are summed in any order.
            difference = (got.detach().float() - expected.detach().float()).abs().max()
            if not difference <= 0.02 * expected.detach().float().abs().max():
                raise RuntimeError(f"a replay differs from a plain call by {float(difference):.3g}")


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _replays(graph: torch.cuda.CUDAGraph, rounds: int) -> list[float]:
    """Seconds of each replay. They are queued without a pause, with an event between two."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    graph.replay()
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(events)]


def _summary(times: list[float], calls: int) -> dict[str, float]:
    median = statistics.median(times)
    return {"seconds": median / calls, "spread": (max(times) - min(times)) / median}


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
