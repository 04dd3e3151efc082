"""The clauses that every network shares: it is a pure function of tensors whose rows do not meet.

Each takes a `Case`: the part as a function of named arguments to one tensor, and arguments to call it with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.testing.contract import Contract, describe, random_state, same_value, snapshot


@dataclass(frozen=True)
class Case:
    """`call` takes the arguments in their order; tensors among them have one row per item of the batch.

    what: how messages name the call. tolerance: for comparisons that rounding may affect.
    """

    part: Any
    what: str
    call: Callable[..., Tensor]
    arguments: dict[str, Any]
    tolerance: float

    def __call__(self, **changes: Any) -> Tensor:
        """On copies, so that a part that writes into its arguments breaks one clause, not all of them."""
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
    """All clauses of this file."""
    arguments_are_left_alone(contract, case)
    calls_repeat(contract, case)
    global_random_numbers_are_left_alone(contract, case)
    rows_do_not_meet(contract, case)
    strides_do_not_matter(contract, case)


def result_is(
    contract: Contract, case: Case, shape: Sequence[int], dtype: torch.dtype, name: str = "shape"
) -> None:
    """The shape, dtype and device that come out, and that every value is finite."""
    with contract.clause(
        name, "the sampler joins the parts by these shapes, and a change of dtype or device fails later on"
    ) as clause:
        result = clause.attempt(case.what, case)
        if clause.broken or not clause.expect(
            isinstance(result, Tensor), f"{case.what} to give a tensor", describe(result)
        ):
            return
        expected = f"{tuple(shape)} of {dtype} on {case.device}"
        given = ", ".join(f"{k} {describe(v)}" for k, v in case.arguments.items() if isinstance(v, Tensor))
        alike = tuple(result.shape) == tuple(shape) and result.dtype == dtype
        clause.expect(
            alike and result.device == case.device,
            f"{case.what} to give {expected}",
            f"{describe(result)}, from {given}",
        )
        if result.device.type != "meta":
            broken = int((~result.isfinite()).sum())
            clause.expect(broken == 0, f"{case.what} to give finite values", f"{broken} infinite or NaN")


def arguments_are_left_alone(contract: Contract, case: Case) -> None:
    with contract.clause(
        "purity", "the caller goes on using its tensors: a step that is replayed would start from others"
    ) as clause:
        given, state = snapshot(case.arguments), _state(case.part)
        case.call(*given.values())
        for name, value in given.items():
            unchanged = same_value(value, case.arguments[name])
            clause.expect(unchanged, f"{case.what} to leave {name} alone", "other values")
        changed = [name for name, now in _state(case.part).items() if not same_value(now, state.get(name))]
        clause.expect(
            not changed,
            f"{case.what} to leave the part's own weights and buffers alone",
            f"changes of {', '.join(changed[:3])}{_training_hint(case.part)}",
        )


def calls_repeat(contract: Contract, case: Case) -> None:
    with contract.clause(
        "replay", "a step that cannot be computed again cannot be studied; hidden counters and caches do this"
    ) as clause:
        others = case.mapped(lambda tensor: tensor.flip(0))
        with random_state(0, case.device):
            first = case()
        copied = first.clone()
        with random_state(0, case.device):
            others()
        kept = f"a result of {case.what} to stay as it was while others are computed (a buffer used again?)"
        clause.expect_close(first, copied, kept, 0)
        with random_state(0, case.device):
            again = case()
        equal = f"equal arguments to give equal results of {case.what}, whatever was called in between"
        clause.expect_close(again, copied, equal, 0)


def global_random_numbers_are_left_alone(contract: Contract, case: Case) -> None:
    with contract.clause(
        "random numbers", "an image belongs to its seed: global random state would make it depend on history"
    ) as clause:
        results = []
        for seed in (1, 2):
            with random_state(seed, case.device):
                before = torch.get_rng_state()
                results.append(case().clone())
                drawn = not torch.equal(before, torch.get_rng_state())
        clause.expect(
            same_value(*results) and not drawn,
            f"{case.what} not to use torch's global random numbers",
            ("another result after another torch.manual_seed" if not same_value(*results) else "draws")
            + _training_hint(case.part),
        )


def rows_do_not_meet(contract: Contract, case: Case) -> None:
    with contract.clause(
        "batch independence",
        "image k of a batch must be the image drawn alone; statistics over the batch mix the images",
    ) as clause:
        together = case().clone()
        for row in range(len(together)):
            alone = case.mapped(itemgetter(slice(row, row + 1)))()
            clause.expect_close(
                alone,
                together[row : row + 1],
                f"row {row} of {case.what} alone to be row {row} of the batch",
                case.tolerance,
            )


def strides_do_not_matter(contract: Contract, case: Case) -> None:
    with contract.clause(
        "strides", "tensors come as slices and transposed views; reading their memory in order mixes values"
    ) as clause:
        spread = case.mapped(lambda tensor: torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0])
        expected = case().clone()
        clause.expect_close(
            spread(), expected, f"non-contiguous arguments to give the same {case.what}", case.tolerance
        )


def depends_on(contract: Contract, case: Case, why: str, **changes: tuple[str, Any]) -> None:
    """Another value of an argument must change the result. changes: argument=(its name in words, a value)."""
    with contract.clause("dependence", why) as clause:
        result = case().clone()
        if not clause.expect(
            bool(result.any()),
            f"{case.what} to depend on its arguments",
            "zeros only (a last layer that starts at zero? Check with trained or random weights)",
        ):
            return
        for argument, (words, value) in changes.items():
            clause.expect(
                not same_value(result, case(**{argument: value})),
                f"{case.what} to depend on {words}",
                "the same bits for another one",
            )


def _state(part: Any) -> dict[str, Any]:
    """What tells whether a module changed: its buffers, and how often torch saw each weight modified."""
    if not isinstance(part, nn.Module):
        return {}
    weights = {n: p._version for n, p in part.named_parameters() if not p.is_inference()}
    return weights | {n: buffer.clone() for n, buffer in part.named_buffers()}


def _training_hint(part: Any) -> str:
    training = isinstance(part, nn.Module) and part.training
    return " (the module is in training mode: call .eval() first)" if training else ""
