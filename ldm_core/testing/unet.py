"""The contract of `ldm_core.protocols.NoisePredictor`, which the U-Net is one of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm_core.protocols import NoisePredictor
from ldm_core.testing.contract import TOLERANCE, Contract, device_of, draw, dtypes_of, in_dtype, isolated
from ldm_core.testing.tensor_clauses import Case, check_tensor_function, depends_on, result_is
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
    """Raise ContractError, which names every clause that a noise predictor breaks; None if it keeps them all.

    config: its in_channels, out_channels, context_dim and downsampling are what the sampler relies on.
    tokens: N of the contexts (B, N, context_dim). timesteps: T; t is tried in 0..T-1. dtypes: what it must
    work in, the first for most clauses; None takes a module's own type and, up to 100 M weights, copies of it
    cast to float32, bfloat16 and float64; a function, whose weights are out of sight, is tried in float32.
    device: None takes the module's, or the CPU. tolerance: what rounding may change, relative to the largest
    value; None takes 1e-4 in float32. A network that also takes class labels is checked with them filled in
    by a lambda. Raises ValueError for a configuration of another kind.
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
    # Larger latents than the smallest: where the coarsest level has one or two pixels, a group norm has a
    # handful of numbers, and a freshly initialised network turns rounding of 1e-6 into errors of 1e-4.
    main = case(dtypes[0], 2 * f, 4 * f)
    each = torch.tensor([0, timesteps // 2, timesteps - 1], device=on)
    _check_timesteps(contract, main, each)
    check_tensor_function(contract, main.replaced(t=each))
    depends_on(
        contract,
        main,
        "a network that ignores an input still gives pictures, of a worse or another distribution",
        x=("x", main.arguments["x"].flip(0)),
        t=("t", timesteps - 1),
        context=("the context", main.arguments["context"].flip(1)),
    )
    contract.verdict()


def _check_shapes(
    contract: Contract, config: UNetConfig, case: Callable[..., Case], dtypes: Sequence[torch.dtype]
) -> None:
    f = config.downsampling

    def check(name: str, h: int, w: int, dtype: torch.dtype) -> None:
        result_is(contract, case(dtype, h, w), (BATCH, config.out_channels, h, w), dtype, name)

    check("shape and dtype", f, 2 * f, dtypes[0])
    contract.verdict()
    check(f"sizes: multiples of {f}", f, f, dtypes[0])
    check(f"sizes: multiples of {f}", 3 * f, 2 * f, dtypes[0])
    for dtype in dtypes[1:]:
        check(f"dtype {dtype}", f, f, dtype)


def _check_timesteps(contract: Contract, case: Case, each: Tensor) -> None:
    with contract.clause(
        "timesteps", "samplers pass one int for the batch, trainers a LongTensor with one for each image"
    ) as clause:
        t = case.arguments["t"]
        as_int, as_tensor = case(), case(t=torch.full_like(each, t))
        what = f"t={t} as an int and as a LongTensor (B,) to agree"
        clause.expect_close(as_tensor, as_int, what, case.tolerance)
        together = case(t=each)
        for row, t in enumerate(each.tolist()):
            what = f"row {row} of a batch with timesteps {each.tolist()} to be the one of t={t}"
            clause.expect_close(together[row], case(t=t)[row], what, case.tolerance)
