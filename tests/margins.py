"""How far each comparison of the tests stays within its bound: a pytest plugin, which no test needs.

    PYTHONPATH=tests PYTHONPYCACHEPREFIX=$(mktemp -d) pytest -n auto -p margins --margins margins \\
        -o enable_assertion_pass_hook=true && python tests/margins.py margins

Other processors round differently, so a test that passes at nine tenths of its bound on one fails on
another. The second command prints every comparison that reached a third of its bound, the closest first. It
covers `assert error < bound` of two numbers, `pytest.approx`, `torch.allclose`, `assert_close`, and the
tolerances of `ldm_core.testing`. In a new cache folder pytest compiles its assertions with the hook.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.assertion import rewrite
from torch import Tensor

from ldm_core.testing import contract

CLOSE = 1 / 3
LARGEST_BOUND = 0.05  # of `error < bound`: larger ones compare something else than rounding
TESTS = str(Path(__file__).parent)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", metavar="FOLDER", help="write each test's closest comparisons there")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--margins")
    if folder is not None:
        Path(folder).mkdir(exist_ok=True)
        config.pluginmanager.register(Margins(Path(folder) / f"{os.getpid()}.jsonl"))


class Margins:
    """Writes a line for every comparison that reaches a third of its bound."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)
        self._test = ""
        allclose, assert_close, expect_close = (
            torch.allclose,
            torch.testing.assert_close,
            contract.Clause.expect_close,
        )

        def noted_allclose(a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8, **rest: Any) -> bool:
            self._compare("torch.allclose", a, b, rtol, atol)
            return allclose(a, b, rtol=rtol, atol=atol, **rest)

        def noted_assert_close(a: Any, b: Any, **options: Any) -> None:
            rtol, atol = options.get("rtol"), options.get("atol")
            if rtol is None and isinstance(a, Tensor):
                rtol, atol = torch.testing._comparison.get_tolerances(a, b, rtol=rtol, atol=atol)
            self._compare("assert_close", a, b, rtol or 0.0, atol or 0.0)
            assert_close(a, b, **options)

        def noted_expect_close(clause: Any, a: Tensor, b: Tensor, what: str, tolerance: float) -> bool:
            if tolerance > 0:
                self._note(what, contract.relative_error(a, b) / tolerance)
            return expect_close(clause, a, b, what, tolerance)

        torch.allclose = noted_allclose  # type: ignore[assignment]
        torch.testing.assert_close = noted_assert_close  # type: ignore[assignment]
        contract.Clause.expect_close = noted_expect_close  # type: ignore[method-assign]
        rewrite._call_reprcompare = self._assertion  # pytest's explanations take a repr of every operand
        rewrite._saferepr = lambda value: type(value).__name__

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid

    def pytest_assertion_pass(self) -> None:
        """That there is such a hook makes pytest call `_assertion` for assertions that hold."""

    def _assertion(self, ops: Sequence[str], results: Any, expls: Any, values: Sequence[Any]) -> str:
        frame = sys._getframe(1)
        if not frame.f_code.co_filename.startswith(TESTS):
            return ""  # of a plugin that pytest rewrites, too
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        for op, a, b in zip(ops, values, values[1:]):
            tolerance = getattr(b, "tolerance", None)  # of pytest.approx
            if op == "==" and tolerance and isinstance(a, Real):
                self._note(f"{where} {a} == {b}", abs(a - b.expected) / tolerance)
            elif op in ("<", "<=", ">", ">=") and _is_number(a) and _is_number(b):
                small, large = sorted((float(a), float(b)))
                if small > 0 and large <= LARGEST_BOUND:
                    self._note(f"{where} {float(a):.3g} {op} {float(b):.3g}", small / large)
        return f"{list(ops)} {[type(value).__name__ for value in values]}"

    def _compare(self, what: str, a: Any, b: Any, rtol: float, atol: float) -> None:
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.numel() and not a.is_complex():
            bound = atol + rtol * b.double().abs()
            ratio = ((a.double() - b.double()).abs() / bound.clamp(min=1e-300)).nan_to_num().max()
            self._note(f"{what} rtol={rtol} atol={atol}", float(ratio))

    def _note(self, what: str, ratio: float) -> None:
        if CLOSE < ratio <= 1:
            self._file.write(json.dumps([ratio, self._test, what]) + "\n")


def _is_number(value: Any) -> bool:
    """Whether it may be an error or a bound, which counts are not."""
    is_scalar = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    return is_scalar or (isinstance(value, Real) and not isinstance(value, int))


def main(folder: str) -> None:
    closest: dict[tuple[str, str], float] = {}
    for file in Path(folder).glob("*.jsonl"):
        for ratio, test, what in map(json.loads, file.read_text().splitlines()):
            closest[test, what] = max(ratio, closest.get((test, what), 0.0))
    for (test, what), ratio in sorted(closest.items(), key=lambda item: -item[1]):
        print(f"{ratio:.2f}  {test}  {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
