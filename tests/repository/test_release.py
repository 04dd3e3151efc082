"""What a release is made of: one version in every file, workflows that can be read, a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ldm_core

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_file_has_the_same_version() -> None:
    version = ldm_core.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert 'dynamic = ["version"]' in read("pyproject.toml")
    newest = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[0]
    assert newest in ("Unreleased", version)


def test_the_tag_is_compared_with_the_line_that_has_the_version() -> None:
    steps = yaml.safe_load(read(".github/workflows/release.yml"))["jobs"]["version"]["steps"]
    [pattern] = re.findall(r"s/(\^__version__ = \"\\\(\.\*\\\)\"\$)/", steps[-1]["run"])
    pattern = pattern.replace(r"\(", "(").replace(r"\)", ")")
    assert re.findall(pattern, read("ldm_core/__init__.py"), re.MULTILINE) == [ldm_core.__version__]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_and_ask_for_few_permissions(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        used: list[Any] = [job.get("uses"), *(step.get("uses") for step in job.get("steps", []))]
        for action in filter(None, used):
            assert re.fullmatch(r"\./\.github/workflows/\w+\.yml|[\w/-]+@(release/)?v\d+", action)


def test_the_model_card_begins_with_front_matter() -> None:
    _, front, _ = read("weights/README.md").split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["pipeline_tag"], card["library_name"]) == ("text-to-image", "ldm_core")
    assert (ROOT / "weights" / card["license_link"]).is_file()
