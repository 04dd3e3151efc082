"""How a broken contract is found and told: clauses, the comparisons that they make, and one error for all.

A check opens one clause after another and says in each what it expects. Whatever is not met, an exception
of the part included, is collected, so that one run tells everything; `verdict` raises it.
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

# How far two ways of computing one thing may be apart: the largest difference over the largest value. Other
# batch sizes and memory layouts take other kernels, which add in another order, and a deep network passes
# the rounding on.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

CASTABLE = 100_000_000  # weights of a module that is small enough to be copied to other types unasked

SHOWN = 4  # broken expectations of one clause that the message tells in full


P = ParamSpec("P")


class ContractError(AssertionError):
    """A part that breaks its contract. The message lists every clause: expected, got, and why it matters."""


class Clause:
    """What one clause expects. Each method notes a breakage and goes on; `expect…` says whether it held."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.cause: Exception | None = None

    def expect(self, condition: bool, expected: str, got: object) -> bool:
        """Note a breakage unless `condition`: "expected …; got …"."""
        if not condition:
            self.broken.append(f"expected {expected}; got {got}")
        return condition

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The result of a call that must work; None where it raises."""
        try:
            return function()
        except Exception as error:
            self.raised(f"{what} to work", error)
        return None

    def expect_value_error(self, what: str, function: Callable[[], Any]) -> None:
        """Expect a call to raise a ValueError and nothing else."""
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
        """Note an exception in the place of what was expected."""
        self.expect(False, expected, f"{type(error).__name__}: {error}")
        self.cause = self.cause or error

    def expect_close(self, actual: Tensor, expected: Tensor, what: str, tolerance: float) -> bool:
        """Expect two tensors within a tolerance relative to the largest value; 0 asks for the same bits."""
        if tolerance == 0:
            got = f"a difference of {largest_difference(actual, expected)}"
            return self.expect(same_value(actual, expected), f"{what} to the bit", got)
        error = relative_error(actual, expected)
        return self.expect(
            error <= tolerance, f"{what}, within {tolerance:g} of the largest value", f"{error:.2g}"
        )


class Contract:
    """The clauses of one check, in the order in which they are opened."""

    def __init__(self, part: Any, seam: str) -> None:
        self._title = f"{name_of(part)} breaks the contract of {seam}"
        self._broken: dict[tuple[str, str], list[str]] = {}  # (clause, why): what it expected and got
        self._cause: Exception | None = None

    @contextmanager
    def clause(self, name: str, why: str) -> Iterator[Clause]:
        """Collects what is broken in the block. An exception ends the clause, not the check."""
        clause = Clause()
        try:
            yield clause
        except Exception as error:
            clause.raised("no error", error)
        self._cause = self._cause or clause.cause
        if clause.broken:
            self._broken.setdefault((name, why), []).extend(clause.broken)

    def verdict(self) -> None:
        """Raise ContractError if anything was broken so far, with the first exception as its cause."""
        if self._broken:
            told = [_told(name, why, broken) for (name, why), broken in self._broken.items()]
            raise ContractError("\n".join([f"{self._title}:", *told])) from self._cause


def _told(name: str, why: str, broken: list[str]) -> str:
    lines = broken[:SHOWN]
    if len(broken) > SHOWN:
        lines.append(f"… and {len(broken) - SHOWN} more of this kind")
    return "\n".join([f"  {name}", *(f"    {line}" for line in lines), f"    why: {why}"])


def name_of(part: Any) -> str:
    """A function's own name, or the class of anything else."""
    return getattr(part, "__qualname__", None) or type(part).__qualname__


def largest_difference(a: Any, b: Any) -> str:
    """In words, for messages."""
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
    """A tensor's shape, dtype and device; the type of anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype} on {value.device}"
    return f"a {type(value).__name__}"


def same_value(a: Any, b: Any) -> bool:
    """Equality that looks into containers and dataclasses, and compares tensors to the bit."""
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
    if hasattr(a, "__dict__") and type(a).__eq__ is object.__eq__:
        return same_value(vars(a), vars(b))
    equal = a == b
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)  # NumPy compares value by value


def snapshot(value: Any) -> Any:
    """A copy that shares no memory with the original, to compare it with later."""
    return copy.deepcopy(value)


def isolated(check: Callable[P, None]) -> Callable[P, None]:
    """A check that computes no gradients and puts torch's global random numbers back as they were."""

    @functools.wraps(check)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            check(*args, **kwargs)

    return run


@contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Run the block from a known state of torch's global random numbers, and put the user's state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def draw(*shape: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers that depend on nothing but the arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def floating_parameter(part: Any) -> Tensor | None:
    """The first weight of a module; None for a function, or for a module without any."""
    weights = part.parameters() if isinstance(part, nn.Module) else iter(())
    return next((p for p in weights if p.is_floating_point()), None)


def device_of(part: Any) -> torch.device:
    """Where a module's weights are; the CPU for a part without any."""
    weight = floating_parameter(part)
    return torch.device("cpu") if weight is None else weight.device


def dtypes_of(part: Any) -> tuple[torch.dtype, ...]:
    """What a network is checked in: a module in its own type and cast to others, a function in float32.

    A function's weights are out of sight. A large module is not copied unless asked.
    """
    weight = floating_parameter(part)
    if weight is None:
        return (torch.float32,)
    if sum(p.numel() for p in part.parameters()) > CASTABLE:
        return (weight.dtype,)
    others = (torch.float32, torch.bfloat16, torch.float64)
    return (weight.dtype, *(dtype for dtype in others if dtype != weight.dtype))


def in_dtype(part: Any, dtype: torch.dtype) -> Any:
    """The part itself where it is of this type or has no type, else a copy of the module, cast."""
    weight = floating_parameter(part)
    if weight is None or weight.dtype == dtype:
        return part
    return copy.deepcopy(part).to(dtype)
