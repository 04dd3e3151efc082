"""How many examples Hypothesis tries: a quarter by default, all of them with `--hypothesis-profile full`."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

FULL, QUICK = 100, 25  # of a test that names no number; tests/conftest.py has the profiles


def examples(count: int, **options: Any) -> settings:
    """For tests of which each example may take any time; `count` is the full number."""
    share = settings.default.max_examples / FULL  # type: ignore[union-attr]
    return settings(max_examples=max(1, round(count * share)), deadline=None, **options)
