"""The configurations of conditioners, by the names that files give them."""

from __future__ import annotations

from typing import Any

CONDITIONERS: dict[str, type[Any]] = {}
