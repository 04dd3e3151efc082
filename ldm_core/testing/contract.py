"""Collects the violations of a contract: clauses, their comparisons, and one error for all of them.

A check opens clauses one by one and states in each what it expects. Violations, including exceptions of the
part, are collected and raised together by `raise_if_broken`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

# Tolerances of two computations of the same result: the largest difference over the largest value. Other
# batch sizes and memory layouts use other kernels, which sum in another order; deep networks amplify the
# rounding.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

CASTABLE = 100_000_000  # the largest number of weights of a module that is cast to other dtypes by default

SHOWN = 4  # violations per clause that the message lists in full


P = ParamSpec("P")


class ContractError(AssertionError):
    """A part violates its contract. The message lists every violated clause, and why it matters."""


class Clause:
    """The violations of one clause. The `expect…` methods record a violation and return whether it holds."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.cause: Exception | None = None

    def expect(self, condition: bool, expected: str, got: object) -> bool:
        """Record the violation "expected …; got …" unless `condition`. Returns `condition`."""
        if not condition:
            self.broken.append(f"expected {expected}; got {got}")
        return condition

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The result of a call, or None with a recorded violation if it raises."""
        try:
            return function()
        except Exception as error:
            self.raised(f"{what} to work", error)
        return None

    def expect_value_error(self, what: str, function: Callable[[], Any]) -> None:
        """Expect a call to raise a ValueError."""
        expected = f"{what} to raise a ValueError"
        try:
            function()
        except ValueError:
            return
        except Exception as error:
            self.raised(expected, error)
        else:
            self.expect(False, expected, "no error")

    def raised(self, expected: str, error: Exception) -> None:
        """Record an exception as a violation."""
        self.expect(False, expected, f"{type(error).__name__}: {error}")
        self.cause = self.cause or error

    def expect_close(self, actual: Tensor, expected: Tensor, what: str, tolerance: float) -> bool:
        """Expect tensors to agree within a tolerance relative to the largest value; 0 for bit equality."""
        if tolerance == 0:
            got = f"a difference of {largest_difference(actual, expected)}"
            return self.expect(same_value(actual, expected), f"{what}, bit for bit", got)
        error = relative_error(actual, expected)
        return self.expect(
            error <= tolerance, f"{what}, within {tolerance:g} of the largest value", f"{error:.2g}"
        )


class Contract:
    """The clauses of one check, in order."""

    def __init__(self, part: Any, seam: str) -> None:
        self._title = f"{name_of(part)} breaks the contract of {seam}"
        self._broken: dict[tuple[str, str], list[str]] = {}  # (clause, why): what it expected and got
        self._cause: Exception | None = None

    @contextmanager
    def clause(self, name: str, why: str) -> Iterator[Clause]:
        """Collect the violations of a clause. An exception ends the clause, not the check."""
        clause = Clause()
        try:
            yield clause
        except Exception as error:
            clause.raised("no error", error)
        self._cause = self._cause or clause.cause
        if clause.broken:
            self._broken.setdefault((name, why), []).extend(clause.broken)

    def raise_if_broken(self) -> None:
        """Raise ContractError if there are violations so far, with the first exception as its cause."""
        if self._broken:
            described = [_describe_clause(name, why, broken) for (name, why), broken in self._broken.items()]
            raise ContractError("\n".join([f"{self._title}:", *described])) from self._cause


def _describe_clause(name: str, why: str, broken: list[str]) -> str:
    lines = broken[:SHOWN]
    if len(broken) > SHOWN:
        lines.append(f"… and {len(broken) - SHOWN} more of this kind")
    return "\n".join([f"  {name}", *(f"    {line}" for line in lines), f"    why: {why}"])


def name_of(part: Any) -> str:
    """The name of a function, or of an object's class."""
    return getattr(part, "__qualname__", None) or type(part).__qualname__


def largest_difference(a: Any, b: Any) -> str:
    """The largest difference of two values, for messages."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return f"{a!r:.60} against {b!r:.60}"
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return f"{describe(a)} against {describe(b)}"
    return f"{float((a.double() - b.double()).abs().max()):.3g}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; infinite for other shapes and for NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = (actual.double() - expected.double()).abs().max()
    error = float(difference / expected.double().abs().max().clamp(min=1e-30))
    return error if error == error else float("inf")


def describe(value: Any) -> str:
    """The shape, dtype and device of a tensor, or the type of another object."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype} on {value.device}"
    return f"a {type(value).__name__}"


def same_value(a: Any, b: Any) -> bool:
    """Recursive equality of containers, dataclasses and objects; tensors must be bit-equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return alike and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, Sequence) and not isinstance(a, (str, bytes)):
        return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b))
    if is_dataclass(a) and not isinstance(a, type):
        return all(same_value(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if hasattr(a, "__dict__") and type(a).__eq__ is object.__eq__:  # type: ignore[comparison-overlap]
        return same_value(vars(a), vars(b))
    equal = a == b
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)  # NumPy compares value by value


def snapshot(value: Any) -> Any:
    """A deep copy, for later comparison."""
    return copy.deepcopy(value)


def isolated(check: Callable[P, None]) -> Callable[P, None]:
    """Run a check without gradients, and restore torch's global random state afterwards."""

    @functools.wraps(check)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            check(*args, **kwargs)

    return run


@contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Run the block with a seeded global random state of torch, and restore the state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def expect_no_global_random_numbers(
    clause: Clause, what: str, call: Callable[[], Tensor], device: torch.device, hint: str = ""
) -> None:
    """Expect a call neither to depend on torch's global random state nor to change it."""
    results = []
    for seed in (1, 2):
        with random_state(seed, device):
            before = torch.get_rng_state()
            results.append(call().clone())
            drawn = not torch.equal(before, torch.get_rng_state())
    same = same_value(*results)
    got = "random numbers drawn" if same else "another result after another torch.manual_seed"
    clause.expect(same and not drawn, f"{what} not to use torch's global random numbers", got + hint)


def draw(*shape: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers that depend on the arguments only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def floating_parameter(part: Any) -> Tensor | None:
    """The first floating-point weight of a module; None for a function or a module without one."""
    weights = part.parameters() if isinstance(part, nn.Module) else iter(())
    return next((p for p in weights if p.is_floating_point()), None)


def device_of(part: Any) -> torch.device:
    """The device of a module's weights; the CPU for a part without weights."""
    weight = floating_parameter(part)
    return torch.device("cpu") if weight is None else weight.device


def dtypes_of(part: Any) -> tuple[torch.dtype, ...]:
    """The dtypes in which a network is checked: a module's own and, unless it is large, others it is cast to.

    A function is checked in float32, since its weights are unknown.
    """
    weight = floating_parameter(part)
    if weight is None:
        return (torch.float32,)
    if sum(p.numel() for p in part.parameters()) > CASTABLE:
        return (weight.dtype,)
    others = (torch.float32, torch.bfloat16, torch.float64)
    return (weight.dtype, *(dtype for dtype in others if dtype != weight.dtype))


def in_dtype(part: Any, dtype: torch.dtype) -> Any:
    """The part itself if it has this dtype or no weights, otherwise a copy cast to it."""
    weight = floating_parameter(part)
    if weight is None or weight.dtype == dtype:
        return part
    return copy.deepcopy(part).to(dtype)
