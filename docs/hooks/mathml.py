"""Formulas as MathML, which browsers draw themselves, without a script.

Large brackets and roots need a font with a table for mathematics. Where the reader's system has none, the
site's own is used: DejaVu Serif, which matplotlib carries.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import matplotlib
from latex2mathml.converter import convert

FONT = "stylesheets/DejaVuSerif.ttf"

# What pymdownx.arithmatex writes with `generic: true`.
FORMULA = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>|'
    r'<div class="arithmatex">\s*\\\[(?P<block>.*?)\\\]\s*</div>',
    re.DOTALL,
)


def with_mathml(page: str) -> str:
    """Replace the TeX of a page's HTML by MathML."""

    def formula(match: re.Match[str]) -> str:
        inline = match["inline"]
        if inline is not None:
            return convert(html.unescape(inline).strip())
        drawn = convert(html.unescape(match["block"]).strip(), display="block")
        return f'<div class="formula">{drawn}</div>'

    return FORMULA.sub(formula, page)


def font() -> bytes:
    """The font of the formulas, for systems without one."""
    return (Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf").read_bytes()
