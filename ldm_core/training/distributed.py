"""Several processes, on one machine or many, that train one model, by PyTorch's own means.

    torchrun --nproc-per-node 8 train.py                                        # one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 train.py  # on each of two

"ddp": each process has the whole model, and gradients are averaged (DistributedDataParallel). "fsdp": each
has a slice of every weight, gradient and optimizer state, and whole blocks only while they compute
(FullyShardedDataParallel 2, `fully_shard`; Zhao et al. 2023, arXiv:2304.11277).

When a process dies, torchrun ends the others and names it; a process that waits for it otherwise gives up
after the timeout of `join`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm_core.checkpoint.writer import is_sliced
from ldm_core.training.gradient_checkpointing import BLOCKS

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """This process among all: number `rank` of `size`, and the device that it is to use."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait here for all the others."""
        if self.size > 1:
            dist.barrier()

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means over all processes, each of which must ask for the same names."""
        tensor = torch.tensor([float(v) for v in values.values()], dtype=torch.float64)
        if self.size > 1:
            # Not every accelerator has float64, and the sum of so few numbers needs no more than float32.
            tensor = mean_over_processes(tensor.to(self.device, torch.float32))
        return dict(zip(values, tensor.tolist()))


def init_distributed(timeout: timedelta = timedelta(minutes=10)) -> World:
    """This process's place among those that torchrun started; alone, if it was not started by torchrun.

    With several, the process group is made (NCCL on GPUs, gloo on CPUs). timeout: after how long a wait for
    another process is an error.
    """
    gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        return World(device=device)
    if gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size(), device)


def shutdown_distributed() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, in each of them; the tensor itself in a process alone."""
    if not several_processes():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def parallelize(objective: nn.Module, world: World, kind: Parallel) -> nn.Module:
    """The module to call in the place of `objective`, so that all processes train it together.

    All start from the first one's weights. With "fsdp", which takes PyTorch 2.6, the objective itself is
    changed: its parameters become `DTensor`s of slices. Raises ValueError for another kind, and with
    "fsdp" for a parameter that is one number and learns, as CLIP's temperature is.
    """
    if kind not in ("ddp", "fsdp"):
        raise ValueError(f"parallel must be 'ddp' or 'fsdp', not {kind!r}")
    if world.size == 1:
        return objective
    if kind == "ddp":
        return DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in objective.parameters():
        dist.broadcast(parameter.detach(), src=0)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in list(objective.modules()):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh)
    frozen = _frozen_scalars(objective)
    options: Any = {"ignored_params": frozen} if frozen else {}  # younger than `fully_shard` itself
    fully_shard(objective, mesh=mesh, **options)
    return objective


def _frozen_scalars(objective: nn.Module) -> set[nn.Parameter]:
    """Scalars, of which there are no slices. Raises ValueError for one that learns."""
    scalars = {name: p for name, p in objective.named_parameters() if p.ndim == 0}
    learning = [name for name, p in scalars.items() if p.requires_grad]
    if learning:
        raise ValueError(f"fsdp cannot slice {learning[0]}, which is one number, to train it: use ddp")
    return set(scalars.values())


@contextmanager
def gradient_sync(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Forward and backward passes inside the block exchange gradients between processes only if wanted.

    So that of several batches that make one step, only the last pays for it.
    """
    sharded: Any = getattr(module, "set_requires_gradient_sync", None)  # of what `fully_shard` changed
    if sharded is not None:
        sharded(wanted)
    waits = isinstance(module, DistributedDataParallel) and not wanted
    with cast(DistributedDataParallel, module).no_sync() if waits else nullcontext():
        yield


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Inside the block, a module that is spread in slices can be used otherwise than by its forward."""
    sharded: Any = module
    if hasattr(module, "unshard"):  # what `fully_shard` makes of a module
        sharded.unshard()
    try:
        yield
    finally:
        if hasattr(module, "reshard"):
            sharded.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, put together on every process if each has a slice of it. All processes must call this."""
    return _as_sliced(tensor).full_tensor() if is_sliced(tensor) else tensor.detach()


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Give a tensor, or this process's slice of it, the values of a whole one."""
    value = value.to(target.device, target.dtype)
    if is_sliced(target):
        from torch.distributed.tensor import distribute_tensor

        sliced = _as_sliced(target)
        value = distribute_tensor(value, sliced.device_mesh, sliced.placements)
    target.copy_(value)


def _as_sliced(tensor: Tensor) -> Any:
    return tensor
