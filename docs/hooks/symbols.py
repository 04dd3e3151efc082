"""Where the package defines its public names, found by parsing its files; nothing is imported.

A path is dotted, as users write it: `ldm_core.schedulers.DDIM.step`. A `Symbol` has the file of the
repository and the dotted name within it: `ldm_core/schedulers/ddim.py`, `DDIM.step`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "ldm_core"


@dataclass(frozen=True)
class Symbol:
    """A module, class, function or constant: `name` is dotted within the file, and empty for the module."""

    file: str  # from the root of the repository on
    name: str
    line: int
    kind: str  # "module", "class", "function" or "constant"
    docstring: str | None

    @property
    def summary(self) -> str:
        """The docstring's first sentence, on one line."""
        paragraph = " ".join((self.docstring or "").split("\n\n")[0].split())
        return re.split(r"(?<! al)\. ", paragraph)[0].rstrip(".:")


@cache
def file_of(module: str) -> str | None:
    """`ldm_core.schedulers` -> `ldm_core/schedulers/__init__.py`; None if there is no such module."""
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if (ROOT / f).is_file()), None)


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def symbols_of(file: str) -> dict[str, Symbol]:
    """All that a file defines, methods included, by dotted name; the module itself is ""."""
    tree = _tree(file)
    found = {"": Symbol(file, "", 1, "module", ast.get_docstring(tree))}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef) and _is_setter(node):
                continue
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                name = prefix + node.name
                found[name] = Symbol(file, name, node.lineno, kind, ast.get_docstring(node))
                if kind == "class":
                    visit(node.body, f"{name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        name = prefix + target.id
                        found.setdefault(name, Symbol(file, name, node.lineno, "constant", None))

    visit(tree.body, "")
    return found


def _is_setter(node: ast.FunctionDef) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list)


@cache
def imports_of(file: str) -> dict[str, str]:
    """The names that a file imports from the package, and the path of each."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
        for alias in node.names
    }


def locate(path: str) -> Symbol | None:
    """The symbol that a path means, through re-exports; None if there is none."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        file = file_of(".".join(parts[:length]))
        if file is None:
            continue
        rest = parts[length:]
        symbol = symbols_of(file).get(".".join(rest))
        if symbol is not None or not rest:
            return symbol
        origin = imports_of(file).get(rest[0])
        if origin is None and file == f"{PACKAGE}/checkpoint/__init__.py":
            origin = f"{PACKAGE}.{rest[0]}"  # its aliases of names of the package
        return None if origin is None else locate(".".join([origin, *rest[1:]]))
    return None


def _literal(file: str, name: str) -> tuple[str, ...]:
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return tuple(ast.literal_eval(node.value))
    return ()


def public_modules() -> tuple[str, ...]:
    """The modules that `import ldm_core` gives access to."""
    return _literal(f"{PACKAGE}/__init__.py", "_MODULES")


def public_names(module: str) -> list[str]:
    """The paths of a module's public names: those of `__all__`, or else those that it defines.

    For a package that only groups files, such as `ldm_core.adapters`, those of its files.
    """
    file = file_of(module)
    assert file is not None, module
    listed = _literal(file, "__all__")
    if listed:
        return [f"{module}.{name}" for name in listed]
    own = [
        f"{module}.{name}"
        for name, symbol in symbols_of(file).items()
        if name and "." not in name and not name.startswith("_") and symbol.kind != "module"
    ]
    if own or not file.endswith("__init__.py"):
        return own
    files = sorted(path.stem for path in (ROOT / file).parent.glob("*.py") if not path.stem.startswith("_"))
    return [name for stem in files for name in public_names(f"{module}.{stem}")]


def members(path: str) -> list[str]:
    """The paths of a class's public methods and properties."""
    symbol = locate(path)
    if symbol is None or symbol.kind != "class":
        return []
    prefix = f"{symbol.name}."
    names = [name.removeprefix(prefix) for name in symbols_of(symbol.file) if name.startswith(prefix)]
    found = [f"{path}.{name}" for name in names if "." not in name and not name.startswith("_")]
    return [name for name in found if (one := locate(name)) is not None and one.kind == "function"]
