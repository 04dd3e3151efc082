"""The syntaxes that a sampler can read prompts in, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ldm_core.conditioners.a1111 import A1111
from ldm_core.conditioners.compel_prompts import Compel
from ldm_core.conditioners.prompt_encoder import PromptEncoder, PromptPhase


@runtime_checkable
class PromptSyntax(Protocol):
    """From prompts to contexts for each phase of a run. Prompts that are all plain are encoded as usual."""

    def is_plain(self, encoder: PromptEncoder, prompt: str) -> bool: ...

    def phases(
        self, encoder: PromptEncoder, prompts: Sequence[str], negatives: Sequence[str], steps: int
    ) -> list[PromptPhase]: ...


SYNTAXES: dict[str, PromptSyntax] = {
    "a1111": A1111(),
    "a1111-no-norm": A1111(keep_mean=False),
    "compel": Compel(),
    "compel-remove": Compel(lowered="remove"),
}


def syntax_of(syntax: Any) -> PromptSyntax | None:
    """The syntax of a name; a `PromptSyntax` or None is returned. Raises ValueError for anything else."""
    if syntax is None or isinstance(syntax, PromptSyntax):
        return syntax
    if not isinstance(syntax, str) or syntax not in SYNTAXES:
        raise ValueError(f"prompts must be one of {', '.join(SYNTAXES)}, not {syntax!r:.60}")
    return SYNTAXES[syntax]
