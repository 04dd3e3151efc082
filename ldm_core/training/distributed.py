"""Distributed training with torch.distributed, on one machine or several.

    torchrun --nproc-per-node 8 train.py                                        # one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 train.py  # on each of two

"ddp": every process holds the full model, and gradients are averaged (DistributedDataParallel).
"fsdp": weights, gradients and optimizer states are sharded over the processes, and blocks are gathered only
while they compute (FSDP2, `fully_shard`; Zhao et al. 2023, arXiv:2304.11277).

When a process dies, torchrun terminates the others; without torchrun, a process that waits for it fails after
the timeout of `init_distributed`.
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
    """The rank and device of this process, and the number of processes (`size`)."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average values over all processes. Every process must pass the same names."""
        tensor = torch.tensor([float(v) for v in values.values()], dtype=torch.float64)
        if self.size > 1:
            # Not every accelerator supports float64.
            tensor = mean_over_processes(tensor.to(self.device, torch.float32))
        return dict(zip(values, tensor.tolist()))


def init_distributed(timeout: timedelta = timedelta(minutes=10)) -> World:
    """Initialize torch.distributed from torchrun's environment variables (NCCL on GPUs, gloo on CPUs).

    Without torchrun, returns a `World` of one process. timeout: how long collective operations wait.
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
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes; returns the tensor itself if there is only one."""
    if not several_processes():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def parallelize(objective: nn.Module, world: World, kind: Parallel) -> nn.Module:
    """Wrap `objective` for training in several processes. Call the returned module instead.

    All processes start from the weights of rank 0. "fsdp" needs PyTorch 2.6 and changes the objective in
    place: its parameters become sharded `DTensor`s. Raises ValueError for another kind, and with "fsdp" for a
    trainable scalar parameter, such as CLIP's temperature, which cannot be sharded.
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
    options: Any = {"ignored_params": frozen} if frozen else {}  # newer than `fully_shard`
    fully_shard(objective, mesh=mesh, **options)
    return objective


def _frozen_scalars(objective: nn.Module) -> set[nn.Parameter]:
    """Frozen scalar parameters, which FSDP cannot shard. Raises ValueError for a trainable one."""
    scalars = {name: p for name, p in objective.named_parameters() if p.ndim == 0}
    trainable = [name for name, p in scalars.items() if p.requires_grad]
    if trainable:
        raise ValueError(f"parallel='fsdp' cannot train {trainable[0]}, a scalar: use parallel='ddp'")
    return set(scalars.values())


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Context manager: backward passes synchronize gradients between processes only if enabled.

    With gradient accumulation, only the last micro-batch needs to.
    """
    if hasattr(module, "set_requires_gradient_sync"):  # a module that `fully_shard` has changed
        cast(Any, module).set_requires_gradient_sync(enabled)
    with nullcontext() if enabled or not isinstance(module, DistributedDataParallel) else module.no_sync():
        yield


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Context manager: the parameters of an FSDP module are gathered, to use it other than by its forward."""
    fsdp: Any = module if hasattr(module, "unshard") else None  # a module that `fully_shard` has changed
    if fsdp is not None:
        fsdp.unshard()
    try:
        yield
    finally:
        if fsdp is not None:
            fsdp.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, on every process. All processes must call this."""
    return cast(Any, tensor).full_tensor() if is_sliced(tensor) else tensor.detach()


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into `target`, or into its shards."""
    value = value.to(target.device, target.dtype)
    if is_sliced(target):
        from torch.distributed.tensor import distribute_tensor

        sharded = cast(Any, target)
        value = distribute_tensor(value, sharded.device_mesh, sharded.placements)
    target.copy_(value)
