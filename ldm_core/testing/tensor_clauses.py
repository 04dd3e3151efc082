"""Clauses for networks and attention functions: pure functions of tensors, independent along the batch.

Each takes a `Case`: a part as a function of named arguments that returns one tensor, with example arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.testing.contract import (
    Contract,
    describe,
    expect_no_global_random_numbers,
    random_state,
    same_value,
    snapshot,
)


@dataclass(frozen=True)
class Case:
    """A call of a part with example arguments.

    call: takes the values of `arguments` in order; tensors have the batch as first dimension.
    what: the call in messages. tolerance: of comparisons that are affected by rounding.
    """

    part: Any
    what: str
    call: Callable[..., Tensor]
    arguments: dict[str, Any]
    tolerance: float

    def __call__(self, **changes: Any) -> Tensor:
        """Call with copies, so that a part that modifies its arguments violates one clause, not all."""
        return self.call(*snapshot({**self.arguments, **changes}).values())

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Case:
        """The same call with a function applied to every tensor among the arguments."""
        changed = {k: function(v) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        return replace(self, arguments=changed)

    def replaced(self, **changes: Any) -> Case:
        """The same call with other values for some arguments."""
        return replace(self, arguments={**self.arguments, **changes})

    @property
    def device(self) -> torch.device:
        return next(v for v in self.arguments.values() if isinstance(v, Tensor)).device


def check_tensor_function(contract: Contract, case: Case) -> None:
    """Check the clauses that do not depend on the kind of part."""
    check_purity(contract, case)
    check_replay(contract, case)
    check_random_numbers(contract, case)
    check_batch_independence(contract, case)
    check_strides(contract, case)


def check_result(
    contract: Contract, case: Case, shape: Sequence[int], dtype: torch.dtype, name: str = "shape"
) -> None:
    """Check the shape, dtype and device of the result, and that it is finite."""
    with contract.clause(
        name, "the sampler relies on these shapes; another dtype or device fails later"
    ) as clause:
        result = clause.attempt(case.what, case)
        if clause.broken or not clause.expect(
            isinstance(result, Tensor), f"{case.what} to return a tensor", describe(result)
        ):
            return
        expected = f"{tuple(shape)} of {dtype} on {case.device}"
        given = ", ".join(f"{k} {describe(v)}" for k, v in case.arguments.items() if isinstance(v, Tensor))
        alike = tuple(result.shape) == tuple(shape) and result.dtype == dtype
        clause.expect(
            alike and result.device == case.device,
            f"{case.what} to return {expected}",
            f"{describe(result)}, from {given}",
        )
        if result.device.type != "meta":
            broken = int((~result.isfinite()).sum())
            clause.expect(broken == 0, f"{case.what} to return finite values", f"{broken} infinite or NaN")


def check_purity(contract: Contract, case: Case) -> None:
    with contract.clause(
        "purity", "the caller uses its tensors again, for example to replay a step"
    ) as clause:
        given, state = snapshot(case.arguments), _state(case.part)
        case.call(*given.values())
        for name, value in given.items():
            unchanged = same_value(value, case.arguments[name])
            clause.expect(unchanged, f"{case.what} not to modify {name}", "modified values")
        changed = [name for name, now in _state(case.part).items() if not same_value(now, state.get(name))]
        clause.expect(
            not changed,
            f"{case.what} not to modify the part's own weights and buffers",
            f"changes of {', '.join(changed[:3])}{_training_hint(case.part)}",
        )


def check_replay(contract: Contract, case: Case) -> None:
    with contract.clause(
        "replay", "hidden counters and caches make results depend on earlier calls"
    ) as clause:
        others = case.mapped(lambda tensor: tensor.flip(0))
        with random_state(0, case.device):
            first = case()
        copied = first.clone()
        with random_state(0, case.device):
            others()
        kept = f"a result of {case.what} not to change when others are computed (a reused buffer?)"
        clause.expect_close(first, copied, kept, 0)
        with random_state(0, case.device):
            again = case()
        equal = f"equal arguments to return equal results of {case.what}, regardless of other calls"
        clause.expect_close(again, copied, equal, 0)


def check_random_numbers(contract: Contract, case: Case) -> None:
    with contract.clause(
        "random numbers",
        "an image must depend on its seed only, not on earlier use of the global random state",
    ) as clause:
        expect_no_global_random_numbers(clause, case.what, case, case.device, _training_hint(case.part))


def check_batch_independence(contract: Contract, case: Case) -> None:
    with contract.clause(
        "batch independence",
        "image k of a batch must equal the image sampled alone; batch statistics mix images",
    ) as clause:
        together = case().clone()
        for row in range(len(together)):
            alone = case.mapped(itemgetter(slice(row, row + 1)))()
            clause.expect_close(
                alone,
                together[row : row + 1],
                f"row {row} of {case.what} alone to equal row {row} of the batch",
                case.tolerance,
            )


def check_strides(contract: Contract, case: Case) -> None:
    with contract.clause(
        "strides", "tensors may be slices or transposed views; reading their memory in order mixes up values"
    ) as clause:
        spread = case.mapped(lambda tensor: torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0])
        expected = case().clone()
        clause.expect_close(
            spread(), expected, f"non-contiguous arguments to return the same {case.what}", case.tolerance
        )


def check_dependence(contract: Contract, case: Case, why: str, **changes: tuple[str, Any]) -> None:
    """Check that other arguments change the result. changes: argument=(name in messages, other value)."""
    with contract.clause("dependence", why) as clause:
        result = case().clone()
        if not clause.expect(
            bool(result.any()),
            f"{case.what} to depend on its arguments",
            "zeros only (a zero-initialised last layer? Check with trained or random weights)",
        ):
            return
        for argument, (words, value) in changes.items():
            clause.expect(
                not same_value(result, case(**{argument: value})),
                f"{case.what} to depend on {words}",
                "an identical result for another value",
            )


def _state(part: Any) -> dict[str, Any]:
    """A module's buffers, and the version counters of its weights, to detect changes."""
    if not isinstance(part, nn.Module):
        return {}
    weights = {n: p._version for n, p in part.named_parameters() if not p.is_inference()}
    return weights | {n: buffer.clone() for n, buffer in part.named_buffers()}


def _training_hint(part: Any) -> str:
    training = isinstance(part, nn.Module) and part.training
    return " (the module is in training mode: call .eval() first)" if training else ""
