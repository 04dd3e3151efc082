"""A page for each file of source that the site links to, with numbered lines and an anchor for each symbol.

The pages stand by themselves (no theme, no search), so that hundreds of them add seconds to a build.
"""

from __future__ import annotations

import html
from pathlib import PurePosixPath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from symbols import ROOT, symbols_of

FOLDER = "source"
STYLE = f"{FOLDER}/style.css"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{file}</title><link rel="stylesheet" href="{up}style.css">
<script>
for (const key of Object.keys(localStorage)) if (key.endsWith(".__palette")) {{
  const scheme = JSON.parse(localStorage[key]).color.scheme
  document.documentElement.className = scheme === "slate" ? "dark" : "light"
}}
</script></head>
<body><header><a href="{up}../index.html">ldm_core</a> <span>{file}</span></header>
{code}
</body></html>
"""

_CSS = """:root { color-scheme: light; --paper: #fff; --ink: #1c1c1e; --faint: #8a8a90; --mark: #fff3c4; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }
header { position: sticky; top: 0; left: 0; padding: .6rem 1rem; background: var(--paper);
  border-bottom: 1px solid color-mix(in srgb, var(--faint) 40%, transparent); }
header a { color: inherit; font-weight: 600; margin-right: .8rem; }
pre { margin: 0; padding: .6rem 0 50vh; min-width: max-content;
  font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre > span { display: block; padding-right: 1rem; scroll-margin-top: 4rem; }
pre > span:target, pre > span:has(a:target) { background: var(--mark); }
a.n { display: inline-block; width: 3.2rem; margin-right: 1rem; text-align: right; color: var(--faint);
  text-decoration: none; user-select: none; }
a.s { scroll-margin-top: 4rem; }
"""


def url_of(file: str) -> str:
    """`ldm_core/sampler.py` -> its page, from the root of the site on."""
    return f"{FOLDER}/{file}.html"


def style() -> str:
    """The style sheet of the pages, for light and dark."""
    light = HtmlFormatter(style="xcode").get_style_defs("pre")
    dark = HtmlFormatter(style="github-dark").get_style_defs("pre")
    nested = "color-scheme: dark; --paper: #17181c; --ink: #d7d9de; --faint: #72757d; --mark: #3d3616;"
    rules = "".join(
        f"{prefix} {line}\n" if line.startswith("pre .") else ""
        for prefix in (":root.dark",)
        for line in dark.splitlines()
    )
    automatic = rules.replace(":root.dark", ":root:not(.light)")
    plain = "\n".join(line for line in light.splitlines() if line.startswith("pre ."))
    return (
        f"{_CSS}{plain}\n:root.dark {{ {nested} }}\n{rules}"
        f"@media (prefers-color-scheme: dark) {{ :root:not(.light) {{ {nested} }}\n{automatic} }}\n"
    )


def page(file: str) -> str:
    """The HTML of a file's page: line 12 is `#L12`, a function is `#ddim_update`, a method `#DDIM.step`."""
    text = (ROOT / file).read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(file, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    names: dict[int, list[str]] = {}
    if file.endswith(".py"):
        for name, symbol in symbols_of(file).items():
            if name:
                names.setdefault(symbol.line, []).append(name)
    lines = highlight(text, lexer, HtmlFormatter(nowrap=True)).splitlines()
    rows = [
        f'<span id="L{n}"><a class="n" href="#L{n}">{n}</a>'
        + "".join(f'<a class="s" id="{html.escape(name)}"></a>' for name in names.get(n, ()))
        + f"{line}</span>"
        for n, line in enumerate(lines, 1)
    ]
    up = "../" * (len(PurePosixPath(file).parts) - 1)
    return _PAGE.format(file=html.escape(file), up=up, code=f"<pre>{''.join(rows)}</pre>")
