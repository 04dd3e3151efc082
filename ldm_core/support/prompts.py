"""What all tokenizers of this package check and report: prompts, token ids, and the end of a cut prompt."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

SHOWN_LOSS = 120  # characters of the lost text that the warning about a cut prompt quotes


def as_prompts(prompts: str | Sequence[str]) -> Sequence[str]:
    """One or several prompts as a sequence. Raises ValueError for anything else."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise ValueError(f"expected a prompt or a sequence of prompts, got {type(prompts).__name__}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"expected every prompt to be a str, but prompt {index} is {prompt!r:.60}")
    return prompts


def as_ids(ids: Any, vocab_size: int, added: Collection[int] = ()) -> list[int]:
    """Token ids (N,) as a list. Raises ValueError unless each is in 0..vocab_size-1 or in `added`."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(values, Iterable):
        raise ValueError(f"expected a sequence of token ids (N,), got {values!r:.60}")
    checked = []
    for value in values:
        token = operator.index(value) if hasattr(value, "__index__") else -1
        if not 0 <= token < vocab_size and token not in added:
            raise ValueError(
                f"expected token ids (N,) in 0..{vocab_size - 1}{' or of an added word' if added else ''}, "
                f"but one is {value!r:.60}"
            )
        checked.append(token)
    return checked


def describe_loss(prompt: str, tokens: int, room: int, lost: str) -> str:
    """The warning that a prompt of more than `room` tokens was cut. lost: the text of what follows."""
    if len(lost) > SHOWN_LOSS:
        lost = lost[: SHOWN_LOSS - 1] + "…"
    return (
        f"the prompt {repr(prompt[:20])[1:-1]}… has {tokens} tokens, but only {room} fit between the "
        f"start and end tokens; lost: {lost!r}"
    )
