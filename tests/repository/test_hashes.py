"""The hashes beside the pins: every package that constraints.txt pins has its own, under the same version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints.txt"
FILES = ("torch", "runtime", "test")


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """The version and the hashes of each package in a file."""
    text = (ROOT / "hashes" / f"{name}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z0-9-]+)==(\S+)(.*(?:\n[ ].*)*)", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE))
    return {package: (version, re.findall(r"--hash=sha256:(\w+)", rest)) for package, version, rest in found}


HASHED = {name: entries(name) for name in FILES}


def pins() -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^;\s]+)", PINS.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def needed(package: str, seen: set[str]) -> Iterator[str]:
    """The packages that an installed one needs here, and those that they need."""
    for text in requires(package) or ():
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in seen:
            seen.add(name)
            yield name
            yield from needed(requirement.name, seen)


def test_what_the_package_needs_is_hashed_in_the_pinned_version() -> None:
    runtime = HASHED["torch"] | HASHED["runtime"]
    packages = set(needed("ldm_core", set()))
    assert {"torch", "numpy", "safetensors", "mpmath"} <= packages
    for package in packages:
        # A package that another platform's torch brings along need not be pinned.
        assert runtime[package][0] == pins().get(package, runtime[package][0])


def test_every_pin_is_hashed_once() -> None:
    for package, version in pins().items():
        found = [HASHED[name][package][0] for name in FILES if package in HASHED[name]]
        assert found == [version], package


@pytest.mark.parametrize("name", FILES)
def test_every_package_has_whole_hashes(name: str) -> None:
    for package, (_, hashes) in HASHED[name].items():
        assert hashes, package
        assert len(set(hashes)) == len(hashes)
        assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
