"""The U-Net as CUDA graphs: its kernels are recorded once per shape of the inputs, and replayed.

A step of SD1's U-Net is about 900 kernels, whose launches from Python take longer than a fast GPU computes. A
graph launches them all at once. It reads its inputs, and the weights, at the addresses that they had when it
was recorded (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm_core.nn.kept_context import KeptContext
from ldm_core.nn.transforms import transforming
from ldm_core.unet.grounding import GroundedContext
from ldm_core.unet.network import Context, UNet

Inputs = Sequence[Tensor | None]
WARM_UP = 3  # calls before recording, in which libraries choose kernels and allocate their workspaces
FUNCTIONS = (
    "attention",
    "convolution",
    "linear",
    "gated",
    "norm_silu",
    "geglu",
)  # attributes of layers that can be replaced


def act_at_every_call(layers: Sequence[nn.Module]) -> bool:
    """Whether hooks or attention functions of layers do more than compute, such as recording."""
    return any(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or getattr(layer.__dict__.get("attention"), "acts_at_every_call", False)
        for layer in layers
    )


class Graph(Protocol):
    """A recording of a function without arguments. `CudaGraph` is one."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Record the function's operations. Returns its result, which has values after a replay only."""

    def replay(self) -> None:
        """Run the recorded operations on the same memory, which overwrites the result."""


class CudaGraph:
    """A CUDA graph on a device. Graphs that never run at the same time may share a memory pool."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        self.device, self.pool, self._graph = device, pool, torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function()
            current.wait_stream(side)
            with torch.cuda.graph(self._graph, pool=self.pool, capture_error_mode="thread_local"):
                return function()

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self._graph.replay()


class CapturedUNet:
    """Computes `UNet.predict` by replaying a graph, as the `runner` of a U-Net.

    new_graph: makes an empty graph. limit: the number of graphs; the one that was used least recently is
    deleted for a new shape.

    Inputs are copied to the graph's own memory at each call, and keys and values are computed from them in
    the graph. Weights that are changed in place are seen; if a weight, a layer or a layer's function is
    replaced, all graphs are recorded again. With hooks on a layer, while attention is recorded, with
    gradients, in autocast, inside a transform and on another device, the U-Net is computed without a graph.
    Threads may share it if they use one CUDA stream, as they do by default.
    """

    def __init__(self, unet: UNet, new_graph: Callable[[], Graph], limit: int = 8) -> None:
        self._predict = unet.predict if unet.runner is None else unet.runner
        self._layers = [module for module in unet.modules() if module is not unet]
        self._unet, self._new_graph, self._limit = unet, new_graph, limit
        self._lock = threading.Lock()
        self._device = next(unet.parameters()).device
        self._recorded: dict[Any, _Recorded] = {}
        self._of = self._parts()

    def __call__(self, x: Tensor, t: Tensor, context: Context, y: Tensor | None) -> Tensor:
        assert not isinstance(context, GroundedContext)  # for which a U-Net uses no runner
        if isinstance(context, KeptContext):
            context = context.tensor
        inputs = (x, t, context, y)
        if not self._applies(x):
            return self._predict(*inputs)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self._graph_for(inputs)(inputs)

    def _applies(self, x: Tensor) -> bool:
        return not (
            x.device != self._device
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled(x.device.type)
            or torch.compiler.is_compiling()
            or transforming()
            or act_at_every_call(self._layers)
        )

    def _graph_for(self, inputs: Inputs) -> _Recorded:
        parts = self._parts()
        if not _same(parts, self._of):
            self._recorded.clear()
            self._layers = [module for module in self._unet.modules() if module is not self._unet]
            self._of = self._parts()
        key = tuple(None if value is None else (value.shape, value.dtype) for value in inputs)
        found = self._recorded.pop(key, None)
        if found is None:
            while len(self._recorded) >= self._limit:
                del self._recorded[next(iter(self._recorded))]
            found = _Recorded(self._predict, inputs, self._new_graph())
        self._recorded[key] = found  # the last one used comes last
        return found

    def _parts(self) -> tuple[list[object], list[int]]:
        """The objects that a graph was recorded with, and the addresses of the weights."""
        modules: list[nn.Module] = [self._unet, *self._layers]
        objects: list[object] = []
        for module in modules:
            objects += module._modules.values()
            objects += module._parameters.values()
            objects += [module.__dict__.get(name) for name in FUNCTIONS]
        return objects, [part.data_ptr() for part in objects if isinstance(part, Tensor)]


def _same(one: tuple[list[object], list[int]], other: tuple[list[object], list[int]]) -> bool:
    return len(one[0]) == len(other[0]) and all(map(is_, one[0], other[0])) and one[1] == other[1]


class _Recorded:
    """The graph of one shape, with memory for its inputs."""

    def __init__(self, predict: Callable[..., Tensor], inputs: Inputs, graph: Graph) -> None:
        self._inputs = [None if value is None else torch.empty_like(value) for value in inputs]
        self._fill(inputs)
        self._graph = graph
        self._output = graph.record(lambda: predict(*self._inputs))

    def __call__(self, inputs: Inputs) -> Tensor:
        self._fill(inputs)
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites it

    def _fill(self, inputs: Inputs) -> None:
        for own, given in zip(self._inputs, inputs):
            if own is not None and given is not None:
                own.copy_(given)
