"""A graph on a CPU: operations are recorded with the memory that they use, and repeated without Python.

As with a CUDA graph, a replay takes what is in the memory of the inputs and the weights, and repeats whatever
Python decided during the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class RecordedGraph:
    """Fits `ldm_core.unet.captured.Graph`."""

    def __init__(self) -> None:
        self.replays = 0
        self._recording = Recording()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        with self._recording:
            result = function()
        return result.fill_(float("nan"))  # only a replay computes it

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self._recording.calls:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for memory, value in zip(tree_leaves(results), tree_leaves(again)):
                    if isinstance(memory, Tensor):
                        memory.copy_(value)
