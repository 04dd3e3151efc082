"""The contract of `ldm_core.protocols.NoisePredictor`, which the U-Net implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm_core.protocols import NoisePredictor
from ldm_core.testing.contract import TOLERANCE, Contract, device_of, draw, dtypes_of, in_dtype, isolated
from ldm_core.testing.tensor_clauses import Case, check_dependence, check_result, check_tensor_function
from ldm_core.unet.config import UNetConfig

BATCH = 3


@isolated
def check_unet(
    unet: NoisePredictor,
    config: UNetConfig,
    *,
    tokens: int = 77,
    timesteps: int = 1000,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
) -> None:
    """Check that a noise predictor meets its contract. Raises ContractError, which lists every violation.

    config: its in_channels, out_channels, context_dim and downsampling determine the shapes.
    tokens: N of the contexts (B, N, context_dim). timesteps: T; t is in 0..T-1.
    dtypes: those to check; most clauses use the first one. By default a module's own dtype and, up to 100 M
        weights, float32, bfloat16 and float64, to which copies are cast; float32 for a function.
    device: by default the module's, or the CPU.
    tolerance: of rounding errors, relative to the largest value; by default 1e-4 in float32.
    To check a network with further inputs, such as class labels, fix them with a lambda.
    Raises ValueError if `config` is not a UNetConfig.
    """
    if not isinstance(config, UNetConfig):
        raise ValueError(f"expected a UNetConfig, as ldm_core.config.SD1.unet, not {type(config).__name__}")
    dtypes = dtypes_of(unet) if dtypes is None else dtypes
    on = device_of(unet) if device is None else torch.device(device)
    f = config.downsampling
    if config.context_dim is None:
        raise ValueError("expected a UNetConfig with a context_dim; one without has no context to check")
    width = config.context_dim

    def case(dtype: torch.dtype, h: int = f, w: int = 2 * f) -> Case:
        arguments = {
            "x": draw(BATCH, config.in_channels, h, w, seed=0, dtype=dtype, device=on),
            "t": timesteps // 2,
            "context": draw(BATCH, tokens, width, seed=1, dtype=dtype, device=on),
        }
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        what = f"unet(x, t, context) of {h}x{w} latents"
        return Case(unet, what, in_dtype(unet, dtype), arguments, limit)

    contract = Contract(unet, "ldm_core.protocols.NoisePredictor")
    _check_shapes(contract, config, case, dtypes)
    # Not the smallest latents: with one or two pixels at the coarsest level, group norms of untrained
    # networks amplify rounding errors from 1e-6 to 1e-4.
    main = case(dtypes[0], 2 * f, 4 * f)
    each = torch.tensor([0, timesteps // 2, timesteps - 1], device=on)
    _check_timesteps(contract, main, each)
    check_tensor_function(contract, main.replaced(t=each))
    check_dependence(
        contract,
        main,
        "a network that ignores an input still returns images, but of a worse distribution",
        x=("x", main.arguments["x"].flip(0)),
        t=("t", timesteps - 1),
        context=("the context", main.arguments["context"].flip(1)),
    )
    contract.raise_if_broken()


def _check_shapes(
    contract: Contract, config: UNetConfig, case: Callable[..., Case], dtypes: Sequence[torch.dtype]
) -> None:
    f = config.downsampling

    def check(name: str, h: int, w: int, dtype: torch.dtype) -> None:
        check_result(contract, case(dtype, h, w), (BATCH, config.out_channels, h, w), dtype, name)

    check("shape and dtype", f, 2 * f, dtypes[0])
    contract.raise_if_broken()
    check(f"sizes: multiples of {f}", f, f, dtypes[0])
    check(f"sizes: multiples of {f}", 3 * f, 2 * f, dtypes[0])
    for dtype in dtypes[1:]:
        check(f"dtype {dtype}", f, f, dtype)


def _check_timesteps(contract: Contract, case: Case, each: Tensor) -> None:
    with contract.clause(
        "timesteps", "samplers pass one int for the batch, trainers a LongTensor (B,)"
    ) as clause:
        t = case.arguments["t"]
        as_int, as_tensor = case(), case(t=torch.full_like(each, t))
        what = f"t={t} as an int and as a LongTensor (B,) to agree"
        clause.expect_close(as_tensor, as_int, what, case.tolerance)
        together = case(t=each)
        for row, t in enumerate(each.tolist()):
            what = f"row {row} of a batch with timesteps {each.tolist()} to equal the result for t={t}"
            clause.expect_close(together[row], case(t=t)[row], what, case.tolerance)
