"""The paired code blocks of the pages `docs/coming-from-*.md`, run side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm_core import schedulers
from ldm_core.model import LatentDiffusion

DOCS = Path(__file__).parents[2] / "docs"
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```py\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESULTS = ("image", "images", "latent", "eps")


def sections(page: str) -> dict[str, dict[str, str]]:
    """{title: {whose: code}} of the sections of a page that have blocks of both sides."""
    _, *rest = SECTION.split((DOCS / page).read_text(encoding="utf-8"))
    found = {title: BLOCK.findall(text) for title, text in zip(rest[::2], rest[1::2], strict=True)}
    for title, blocks in found.items():
        assert len(dict(blocks)) == len(blocks), f"{title} has two blocks of one side"
    return {title: dict(blocks) for title, blocks in found.items() if blocks}


Results = dict[str, Any]


class PageRun:
    """The blocks of each side from top to bottom, in a namespace per side, run as far as needed."""

    def __init__(self, page: str, given: dict[str, Results] | None = None) -> None:
        self.page, self.rest = page, list(sections(page).items())
        self.spaces: dict[str, Results] = {whose: dict(values) for whose, values in (given or {}).items()}
        self.results: dict[str, dict[str, Results]] = {}

    def __getitem__(self, title: str) -> dict[str, Results]:
        """{whose: results} of a section."""
        while title not in self.results:
            current, blocks = self.rest.pop(0)
            found = {}
            for whose, code in blocks.items():
                space = self.spaces.setdefault(whose, {})
                for name in RESULTS:
                    space.pop(name, None)
                exec(compile(code, f"{self.page}: {current}: {whose}", "exec", dont_inherit=True), space)
                found[whose] = {name: space[name] for name in RESULTS if name in space}
            self.results[current] = found
        return self.results[title]


def attentive(model: LatentDiffusion) -> LatentDiffusion:
    """With larger values in cross-attention, so that the picture of random weights depends on its prompt."""
    for name, parameter in model.unet.named_parameters():
        if "attn2.to_v" in name:
            parameter.data *= 8
    return model


def levels(ours: Any, theirs: Any) -> int:
    """The largest difference between two PIL images, or lists of them, in levels of 256."""
    pair = [
        np.stack(
            [np.asarray(one.convert("RGB"), int) for one in (side if isinstance(side, list) else [side])]
        )
        for side in (ours, theirs)
    ]
    assert pair[0].std() > 20, "a picture, not a plain area"
    return int(abs(pair[0] - pair[1]).max())


def scheduler_named(expression: str) -> Any:
    """The scheduler that a page's table writes, such as `Euler(spacing="karras")`."""
    return eval(expression, vars(schedulers).copy())


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
