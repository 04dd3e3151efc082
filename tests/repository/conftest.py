"""Fixtures of the tests of docs, examples and the package as a whole."""

from __future__ import annotations

from functools import partial

import pytest

from ldm_core import watch
from ldm_core.watch import preview


@pytest.fixture
def quick_previews(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is not slow, fit previews to 4 pictures instead of 48."""
    if request.node.get_closest_marker("slow") is None:
        quick = partial(preview.fit_preview, pictures=4)
        for module in (preview, watch):
            monkeypatch.setattr(module, "fit_preview", quick)
