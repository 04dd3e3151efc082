"""Mark an answer: run the tests of an exercise in order, up to the first that fails."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch

from ldm_core.exercises.catalogue import Exercise
from ldm_core.exercises.user_file import UserFile, Wrong


@dataclass(frozen=True)
class Mark:
    """passed: the tests that the answer passes. failed: the first that it does not, and `wrong` says why."""

    exercise: Exercise
    passed: tuple[str, ...]
    failed: str | None = None
    wrong: str | None = None

    @property
    def right(self) -> bool:
        """Whether all of the exercise's tests passed."""
        return self.failed is None


def mark(exercise: Exercise, answer: UserFile) -> Mark:
    """Run the tests of an exercise on an answer, in order. A test that fails is the last one.

    The module `checks.NAME` of an exercise has a generator `check(answer)`, which yields the name of each
    test before it runs it, and raises Wrong where it fails.
    """
    check = import_module(f"ldm_core.exercises.checks.{exercise.name}").check
    begun: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an answer may draw random numbers
        try:
            for name in check(answer):
                begun.append(name)
        except Wrong as wrong:
            *passed, failed = begun or [f"`{exercise.defines}` is there"]
            return Mark(exercise, tuple(passed), failed, str(wrong))
    return Mark(exercise, tuple(begun))
