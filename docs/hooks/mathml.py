"""Formulas as MathML, which browsers draw themselves: no script, no font file, and nothing to fetch."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

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
