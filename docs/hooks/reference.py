"""The pages of the reference: one for the names of `ldm_core` itself, one for each public module.

A name is described once, on the page of the module that defines it. The pages of other modules that export it
link there.
"""

from __future__ import annotations

from collections.abc import Iterator

from docstrings import as_markdown
from symbols import PACKAGE, Symbol, file_of, locate, public_modules, public_names, symbols_of

FOLDER = "reference"


def homes() -> dict[Symbol, tuple[str, str]]:
    """Each public symbol's (page, path under which that page describes it)."""
    found: dict[Symbol, tuple[str, str]] = {}
    for inside in (True, False):  # first the modules that define a name, then those that only export it
        for module in public_modules():
            for path in public_names(f"{PACKAGE}.{module}"):
                symbol = locate(path)
                if symbol is not None and symbol.kind != "module" and _defines(module, symbol) >= inside:
                    found.setdefault(symbol, (f"{module}.md", path))
        if inside:
            for path in public_names(PACKAGE):
                symbol = locate(path)
                # `ldm_core.apply_lora` is the name to use, not `ldm_core.adapters.lora.apply_lora`.
                if symbol is not None and found.get(symbol, ("", "...."))[1].count(".") > 2:
                    found[symbol] = (f"{PACKAGE}.md", path)
    return found


def _defines(module: str, symbol: Symbol) -> bool:
    return symbol.file.startswith((f"{PACKAGE}/{module}/", f"{PACKAGE}/{module}.py"))


def pages() -> Iterator[tuple[str, str]]:
    """(path from docs/ on, Markdown) of every page."""
    places = homes()
    yield f"{FOLDER}/index.md", _index(places)
    yield f"{FOLDER}/{PACKAGE}.md", _page(PACKAGE, places)
    for module in public_modules():
        yield f"{FOLDER}/{module}.md", _page(f"{PACKAGE}.{module}", places)


def _page(module: str, places: dict[Symbol, tuple[str, str]]) -> str:
    file = file_of(module)
    assert file is not None
    own = f"{module.removeprefix(f'{PACKAGE}.')}.md"
    lines = [
        f"# {module.removeprefix(f'{PACKAGE}.')}",
        "",
        as_markdown(symbols_of(file)[""].docstring or ""),
        "",
    ]
    elsewhere, here = [], []
    for path in public_names(module):
        symbol = locate(path)
        if symbol is None or symbol.kind == "module":
            continue
        page, place = places[symbol]
        (here if (page, place) == (own, path) else elsewhere).append((path, symbol, page, place))
    if elsewhere:
        lines += ["| name | |", "|---|---|"]
        lines += [_row(path, symbol, page, place) for path, symbol, page, place in elsewhere] + [""]
    for path, *_ in here:
        lines += [f"::: {path}", ""]
    return "\n".join(lines)


def _index(places: dict[Symbol, tuple[str, str]]) -> str:
    text = [
        "# Reference",
        "",
        "Every public name, from its docstring. `import ldm_core` gives access to all of them: "
        "`ldm_core.Sampler`, `ldm_core.schedulers.DDIM`. Letters in shapes mean the same everywhere: "
        "B images of a batch, C channels, H and W pixels, h and w latent rows and columns, N and M tokens, "
        "D the size of an attention head, T timesteps ([all letters](../architecture.md#shapes)).",
        "",
        "## Names of `ldm_core`",
        "",
        "| name | |",
        "|---|---|",
    ]
    for path in public_names(PACKAGE):
        symbol = locate(path)
        assert symbol is not None, path
        text.append(_row(path, symbol, *places[symbol]))
    text += ["", "## Modules", "", "| module | names | |", "|---|---:|---|"]
    for module in public_modules():
        file = file_of(f"{PACKAGE}.{module}")
        assert file is not None
        count = len(public_names(f"{PACKAGE}.{module}"))
        text.append(f"| [`{module}`]({module}.md) | {count} | {_cell(symbols_of(file)[''].summary)} |")
    return "\n".join(text) + "\n"


def _row(path: str, symbol: Symbol, page: str, place: str) -> str:
    return f"| [`{path.removeprefix(f'{PACKAGE}.')}`]({page}#{place}) | {_cell(symbol.summary)} |"


def _cell(text: str) -> str:
    return as_markdown(text).replace("|", "\\|").replace("\n", " ")
