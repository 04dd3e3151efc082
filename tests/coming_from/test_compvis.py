"""The lines of docs/coming-from-compvis.md: CompVis's formulas and ours give the same pictures."""

from __future__ import annotations

from typing import Any

import pytest
from support.paired_blocks import PageRun, sections

PAGE = "coming-from-compvis.md"
PICTURE = 1e-3  # of the range; PLMS multiplies rounding by up to 55/24 a step, and guidance by 7.5


@pytest.fixture(scope="module")
def results(original: dict[str, Any]) -> PageRun:
    return PageRun(PAGE, {"CompVis": original, "ldm_core": {"init_image": original["init_image"]}})


@pytest.mark.parametrize("title", sections(PAGE))
def test_both_sides_agree(results: PageRun, title: str) -> None:
    theirs, ours = results[title]["CompVis"]["image"], results[title]["ldm_core"]["image"]
    assert ours.std() > 0.08, "a picture, not a plain area"
    assert float((ours - theirs).abs().max()) < PICTURE


def test_the_sampler_and_the_start_matter(results: PageRun) -> None:
    plms, ddim, changed = (results[title]["ldm_core"]["image"] for title in sections(PAGE))
    for one, other in ((plms, ddim), (ddim, changed)):
        assert float((one - other).abs().max()) > 5 * PICTURE
