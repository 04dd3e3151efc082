"""The contract of `ldm_core.protocols.NoisePredictor`, which the U-Net is one of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_core.config import UNetConfig
from ldm_core.protocols import NoisePredictor
from ldm_core.testing.contract import TOLERANCE, Contract, device_of, draw, dtypes_of, in_dtype, isolated
from ldm_core.testing.tensor_clauses import Case, check_tensor_function, depends_on, result_is

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
    cast to float32, bfloat16 and float64; a function is tried in float32, which is what `LatentDiffusion`
    gives it. device: None takes the module's, or the CPU. tolerance: what rounding may change, relative to
    the largest value; None takes 1e-4 in float32. A network that also takes class labels is checked with them
    filled in by a lambda.
    Raises ValueError for a configuration of another kind.
    """
    if not isinstance(config, UNetConfig):
        raise ValueError(f"expected a UNetConfig, as ldm_core.config.SD1.unet, not {type(config).__name__}")
    dtypes = dtypes_of(unet) if dtypes is None else dtypes
    on = device_of(unet) if device is None else torch.device(device)
    f = config.downsampling

    def case(dtype: torch.dtype, h: int = f, w: int = 2 * f, t: torch.Tensor | int = timesteps // 2) -> Case:
        arguments = {
            "x": draw(BATCH, config.in_channels, h, w, seed=0, dtype=dtype, device=on),
            "t": t,
            "context": draw(BATCH, tokens, config.context_dim, seed=1, dtype=dtype, device=on),
        }
        given = "an int t" if isinstance(t, int) else "t as a LongTensor (B,)"
        what = f"unet(x, t, context) of {h}x{w} latents with {given}"
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        return Case(unet, what, in_dtype(unet, dtype), arguments, limit)

    def shape(h: int, w: int) -> tuple[int, ...]:
        return (BATCH, config.out_channels, h, w)

    contract = Contract(unet, "ldm_core.protocols.NoisePredictor")
    main = case(dtypes[0])
    result_is(contract, main, shape(f, 2 * f), dtypes[0])
    contract.verdict()
    for h, w in ((f, f), (3 * f, 2 * f)):
        result_is(contract, case(dtypes[0], h, w), shape(h, w), dtypes[0], f"sizes: multiples of {f}")
    for dtype in dtypes[1:]:
        result_is(contract, case(dtype, f, f), shape(f, f), dtype, f"dtype {dtype}")

    each = torch.tensor([0, timesteps // 2, timesteps - 1], device=on)
    rows = case(dtypes[0], t=each)
    with contract.clause(
        "timesteps", "samplers pass one int for the batch, trainers a LongTensor with one for each image"
    ) as clause:
        tensor = main(t=torch.full((BATCH,), timesteps // 2, device=on))
        clause.expect_close(tensor, main(), "an int t and a LongTensor of it to agree", main.tolerance)
        together = rows()
        for row, t in enumerate(each.tolist()):
            what = f"row {row} of a batch with timesteps {each.tolist()} to be the one of t={t}"
            expected = main(t=t)[row]
            clause.expect_close(together[row], expected, what, main.tolerance)
    check_tensor_function(contract, rows)
    other = case(dtypes[0]).arguments
    depends_on(
        contract,
        main,
        "a network that ignores an input still gives pictures, of a worse or another distribution",
        x=("x", other["x"].flip(0)),
        t=("t", timesteps - 1),
        context=("the context", other["context"].flip(1)),
    )
    contract.verdict()
