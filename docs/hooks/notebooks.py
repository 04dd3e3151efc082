"""Notebooks as pages: scripts in jupytext's percent format, run by the build, with what their cells show.

A cell shows what it prints, and the value of its last expression: a picture as one, anything else as text.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?.*\n", re.MULTILINE)


@dataclass
class Notebook:
    """A page, and the pictures beside it: file name -> WebP."""

    markdown: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def cells(text: str) -> list[tuple[bool, str]]:
    """(whether it is Markdown, its text) of each cell."""
    marks = list(_CELL.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found = []
    for mark, end in zip(marks, ends):
        body = text[mark.end() : end].strip("\n")
        if mark["kind"]:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        found.append((bool(mark["kind"]), body))
    return found


def page(path: Path, run: bool) -> Notebook:
    """The page of a script. run: whether to run it, in a folder of its own, and show what the cells show."""
    notebook, space = Notebook(), {"__name__": "__notebook__"}
    written: list[str] = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for is_text, body in cells(path.read_text(encoding="utf-8")):
                written.append(body if is_text else f"```py\n{body}\n```")
                if run and not is_text:
                    written += _shown(body, space, f"{path.stem}-{len(notebook.pictures) + 1}", notebook)
        finally:
            os.chdir(before)
    notebook.markdown = "\n\n".join(written) + "\n"
    return notebook


def _shown(code: str, space: dict[str, Any], name: str, notebook: Notebook) -> list[str]:
    """The Markdown of what a cell shows."""
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if isinstance(last, ast.Expr) and not code.rstrip().endswith(";"):
            exec(compile(ast.Module(tree.body[:-1], []), name, "exec", dont_inherit=True), space)
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), space)
        else:
            exec(compile(tree, name, "exec", dont_inherit=True), space)
            value = None
    text = printed.getvalue()
    found = []
    picture = _picture(value)
    if picture is not None:
        notebook.pictures[f"{name}.webp"] = picture
    elif value is not None:
        text += f"{value!r}\n"
    if text.strip():
        found.append(f"```text\n{text.rstrip()}\n```")
    if picture is not None:
        found.append(f"![What the cell shows](pictures/{name}.webp)")
    return found


def _picture(value: Any) -> bytes | None:
    """A picture of Pillow or a figure of matplotlib as WebP."""
    data = io.BytesIO()
    if hasattr(value, "savefig"):
        value.savefig(data, format="png", dpi=110)
        from PIL import Image

        value = Image.open(io.BytesIO(data.getvalue())).convert("RGB")
        data = io.BytesIO()
    if not hasattr(value, "getbands"):
        return None
    value.convert("RGB").save(data, "WEBP", quality=90)
    return data.getvalue()
