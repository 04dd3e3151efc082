"""A PyTorch network converted to OpenVINO, which is imported when it is asked for (pip install openvino)."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn


def in_openvino(network: nn.Module, dtype: str, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """What computes a float32 network's output for `inputs`: in float32 or, with "bfloat16", in that.

    OpenVINO keeps weights, inputs and outputs in float32 for both, and as many threads as PyTorch now has.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports every use
    import openvino

    wide = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    model = openvino.convert_model(network, example_input=wide)
    precision = "bf16" if dtype == "bfloat16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(model, "CPU", settings)
    arrays = [x.numpy() for x in wide]
    return lambda: torch.from_numpy(compiled(arrays)[0])
