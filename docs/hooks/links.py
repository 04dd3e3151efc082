"""Links of the Markdown pages that leave docs/: to pages of source, to READMEs, to folders.

In the repository `../ldm_core/sampler.py` is a file; on the site it is a page of source. A link may name a
symbol, `../ldm_core/schedulers/ddim.py#DDIM.step`: the site adds the line where the symbol is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from source_pages import url_of
from symbols import ROOT, symbols_of

# Files outside docs/ that are pages of the site, and where.
PAGES = {
    "weights/README.md": "models/bundled.md",
    "weights/small/README.md": "models/small.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "README.md": "index.md",
}
_CODE = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<text>\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?(?P<title>\s[^)]*)?\)")


def rewritten(markdown: str, page: str, source: str, use_source: Callable[[str], None]) -> str:
    """The Markdown of a page with its links as the site has them.

    page: its place on the site, from docs/ on. source: the file's place in the repository.
    use_source: called with each file (from the root on) whose page of source is linked to.
    """

    def link(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place, after = _place(path, anchor, use_source)
        if place is None:
            return match[0]
        found = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{match['text']}{found}{anchor}{match['title'] or ''}){after}"

    parts = _CODE.split(markdown)  # text, code, fence, text, ...
    return "".join(
        _LINK.sub(link, part) if i % 3 == 0 else part for i, part in enumerate(parts) if part and i % 3 != 2
    )


def _place(path: str, anchor: str, use_source: Callable[[str], None]) -> tuple[str | None, str]:
    """Where a file of the repository is on the site, and the number of the line that the anchor means."""
    if path in PAGES and (ROOT / path).exists():
        return PAGES[path], ""
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/"), ""
    file = ROOT / path
    if file.is_dir():
        index = next((f for f in ("__init__.py", "README.md") if (file / f).is_file()), None)
        index = index or next((f.name for f in sorted(file.iterdir()) if f.is_file()), None)
        path = f"{path}/{index}"
    if not (ROOT / path).is_file():
        return None, ""
    use_source(path)
    symbol = symbols_of(path).get(anchor[1:]) if anchor[1:] and path.endswith(".py") else None
    return url_of(path), f":{symbol.line}" if symbol else ""
