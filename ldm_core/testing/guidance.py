"""The contract of `ldm_core.guidance.Guidance`."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance import Guidance
from ldm_core.testing.contract import TOLERANCE, Contract, describe, draw, isolated
from ldm_core.testing.tensor_clauses import Case, check_result, check_tensor_function

B, N, WIDTH, C, SIZE = 3, 5, 6, 4, 4
T = 500


@isolated
def check_guidance(
    guidance: Guidance, *, neutral_scale: float | None = 1.0, dtype: torch.dtype = torch.float32
) -> None:
    """Check that a guidance function meets its contract. Raises ContractError, which lists every violation.

    neutral_scale: the scale at which the result is the conditional prediction; None if there is none.
    dtype: of the latents and contexts.
    """
    contract = Contract(guidance, "ldm_core.guidance.Guidance")
    calls: list[tuple[Tensor, object, Tensor]] = []

    def network(x: Tensor, t: float, condition: Condition) -> Tensor:
        context = condition.context
        assert context is not None
        calls.append((x, t, context))
        moved = context.mean(dim=(1, 2))[:, None, None, None]
        if len(x) != len(context):  # reported below, with what was given
            moved = moved.mean()
        return torch.tanh(0.8 * x - 0.5 * x.roll(1, dims=-1) + 2 * moved + t / 1000)

    def case(scale: float, progress: float = 0.5) -> Case:
        def call(x: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
            conditions = Condition(context=cond), Condition(context=uncond)
            return guidance(network, x, T, *conditions, scale=scale, progress=progress)

        arguments = {
            "x": draw(B, C, SIZE, SIZE, seed=0, dtype=dtype, device=torch.device("cpu")),
            "cond": draw(B, N, WIDTH, seed=1, dtype=dtype, device=torch.device("cpu")),
            "uncond": draw(B, N, WIDTH, seed=2, dtype=dtype, device=torch.device("cpu")),
        }
        what = f"the guided prediction at scale {scale}, progress {progress}"
        return Case(guidance, what, call, arguments, TOLERANCE[dtype])

    shape = (B, C, SIZE, SIZE)
    for scale in (0.0, 0.5, 1.0, 7.5):
        for progress in (0.0, 0.5, 1.0):
            check_result(contract, case(scale, progress), shape, dtype, f"shape and dtype, at scale {scale}")
    contract.raise_if_broken()
    with contract.clause(
        "network calls",
        "the sampler's network takes as many rows of x as the condition has",
    ) as clause:
        calls.clear()
        case(7.5)()
        clause.expect(bool(calls), "at least one call of the network", "none")
        for x, t, context in calls:
            fits = x.shape[1:] == shape[1:] and len(context) == len(x)
            rows = f"x of (rows, {', '.join(map(str, shape[1:]))}) and a condition with as many rows"
            clause.expect(fits, rows, f"{describe(x)} with {describe(context)}")
            clause.expect(type(t) is int and t == T, f"t={T}, unchanged", f"t={t!r}")
    check_tensor_function(contract, case(7.5))
    if neutral_scale is not None:
        with contract.clause(
            "neutral scale", f"guidance is off at scale {neutral_scale}, where users compare methods"
        ) as clause:
            neutral = case(neutral_scale)
            expected = network(neutral.arguments["x"], T, Condition(context=neutral.arguments["cond"]))
            what = f"scale {neutral_scale} to return the conditional prediction"
            clause.expect_close(neutral(), expected, what, neutral.tolerance)
    contract.raise_if_broken()
