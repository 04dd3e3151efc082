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
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_core.testing import contract

CLOSE = 1 / 3
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_BELOW = re.compile(rf"\(?({_NUMBER}) <=? ({_NUMBER})(?![\w.])")
_ABOVE = re.compile(rf"\(?({_NUMBER}) >=? ({_NUMBER})(?![\w.])")
_APPROX = re.compile(rf"\(?({_NUMBER}) == ({_NUMBER}) ± ({_NUMBER})")


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

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid

    def pytest_assertion_pass(self, item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
        if found := _APPROX.match(expl):
            value, expected, bound = map(float, found.groups())
            if bound > 0:
                self._note(f"{orig} (line {lineno})", abs(value - expected) / bound)
        elif found := _BELOW.match(expl) or _ABOVE.match(expl):
            small, large = sorted(map(float, found.groups()))
            if small > 0 and not (small.is_integer() and large.is_integer()):
                self._note(f"{orig} (line {lineno}: {found[1]} against {found[2]})", small / large)

    def _compare(self, what: str, a: Any, b: Any, rtol: float, atol: float) -> None:
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.numel() and not a.is_complex():
            bound = atol + rtol * b.double().abs()
            ratio = ((a.double() - b.double()).abs() / bound.clamp(min=1e-300)).nan_to_num().max()
            self._note(f"{what} rtol={rtol} atol={atol}", float(ratio))

    def _note(self, what: str, ratio: float) -> None:
        if CLOSE < ratio <= 1:
            self._file.write(json.dumps([ratio, self._test, what]) + "\n")


def main(folder: str) -> None:
    closest: dict[tuple[str, str], float] = {}
    for file in Path(folder).glob("*.jsonl"):
        for ratio, test, what in map(json.loads, file.read_text().splitlines()):
            closest[test, what] = max(ratio, closest.get((test, what), 0.0))
    for (test, what), ratio in sorted(closest.items(), key=lambda item: -item[1]):
        print(f"{ratio:.2f}  {test}  {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
