"""Values in error messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm_core.support.printable import shown


class Drawn:
    def __repr__(self) -> str:
        return "a\x1b[1m\n   b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Drawn(), r"a\x1b[1m b"),
        ([Drawn(), 3], r"[a\x1b[1m b, 3]"),
        ("a\n  b  c", r"'a\n  b  c'"),
        (torch.eye(2), "tensor([[1., 0.], [0., 1.]])"),
    ],
)
def test_any_value_is_one_printable_line(value: Any, text: str) -> None:
    assert shown(value) == text
