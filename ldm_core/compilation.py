"""Faster networks by PyTorch's means: `ldm_core.compile` and `ldm_core.capture`.

Both change a model in place, how it is computed and not what: weights, their names and files stay the same.
The sampler makes no difference between such a model and a plain one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm_core.autoencoder.layers import Decoder
from ldm_core.nn.kept_context import KeptContext
from ldm_core.support.modules import named_modules
from ldm_core.unet.captured import CapturedUNet, CudaGraph, act_at_every_call
from ldm_core.unet.network import Context, UNet

Model = TypeVar("Model")


def compile(model: Model, **options: Any) -> Model:
    """Compile the U-Net and the decoder with `torch.compile`. Modifies the model and returns it.

    model: a `LatentDiffusion` or a module that contains a U-Net of this package. options: those of
    `torch.compile`, such as `mode="max-autotune"` or `backend`.

    They are compiled at the first call and again for other shapes and dtypes; a run with any number of steps
    needs one compilation. While a layer of the U-Net has hooks, as for adapters that are not fused and for
    merged tokens, and while its attention is recorded, it runs uncompiled. On a CPU, Winograd's convolution
    is not used in compiled code. Copies of the model are not compiled. Results change by rounding errors.
    Raises ValueError for a model without a U-Net of this package, and for one that is captured already.
    """
    unets = _unets(model)
    if any(isinstance(unet.runner, CapturedUNet) for unet in unets):
        raise ValueError("compile expects a model that is not captured: call ldm_core.capture afterwards")
    for unet in unets:
        unet.runner = _CompiledUNet(unet, options)
    for _, module in named_modules(model):
        if isinstance(module, Decoder):
            module.compile(**options)
    return model


def capture(model: Model, *, limit: int = 8) -> Model:
    """Run the U-Net as CUDA graphs, which removes the time of launching kernels one by one. Modifies the
    model and returns it.

    model: a `LatentDiffusion` or a module that contains a U-Net of this package, on a CUDA device. limit: the
    number of shapes of inputs whose graphs are kept, each with memory of its own.

    The first call of a shape records a graph, which takes some seconds at most. When graphs are used, and
    when they are recorded again, is described in `ldm_core.unet.captured.CapturedUNet`. A model may be
    compiled before it is captured. Copies of the model are not captured. Raises ValueError for a model
    without a U-Net of this package, for another device, and for a limit below 1.
    """
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of graphs, 1 or more, not {limit!r:.60}")
    unets = _unets(model)
    for unet in unets:
        device = next(unet.parameters()).device
        if device.type != "cuda":
            raise ValueError(
                f"capture needs a model on a CUDA device, got one on {device}: move it with model.to('cuda')"
            )
    pool = torch.cuda.graph_pool_handle()
    for unet in unets:
        if not isinstance(unet.runner, CapturedUNet):
            device = next(unet.parameters()).device
            unet.runner = CapturedUNet(unet, partial(CudaGraph, device, pool), limit)
    return model


class _CompiledUNet:
    """`UNet.predict`, compiled. Compiled code does not call hooks that were added after its compilation."""

    def __init__(self, unet: UNet, options: dict[str, Any]) -> None:
        self._unet = unet
        self._layers = [module for module in unet.modules() if module is not unet]
        self._compiled = torch.compile(unet.predict, **options)

    def __call__(self, x: Tensor, t: Tensor, context: Context, y: Tensor | None) -> Tensor:
        if act_at_every_call(self._layers):
            return self._unet.predict(x, t, context, y)
        return self._compiled(x, t, context.tensor if isinstance(context, KeptContext) else context, y)


def _unets(model: Any) -> list[UNet]:
    unets = [module for _, module in named_modules(model) if isinstance(module, UNet)]
    if not unets:
        raise ValueError(f"expected a model with a U-Net of this package, got {type(model).__name__}")
    return unets
