"""The rows of the registry for conditioners of inputs other than prompts."""

from __future__ import annotations

from ldm_core.loading.part import Part

CONDITIONER_PARTS: tuple[Part, ...] = ()
