"""Twelve exercises: parts of latent diffusion to write, which the library marks.

    python -m ldm_core.exercises                        # the list
    python -m ldm_core.exercises stub 3 > my.py         # what to begin with
    python -m ldm_core.exercises check 3 my.py          # what is right, and what is wrong, in words

Marking executes the file that it is given, since that is the user's own program. The solutions are the
library's own files. docs/exercises has a page for each exercise.
"""

from ldm_core.exercises.catalogue import EXERCISES, Exercise, exercise
from ldm_core.exercises.marking import Mark, mark
from ldm_core.exercises.user_file import UserFile, Wrong

__all__ = ["EXERCISES", "Exercise", "Mark", "UserFile", "Wrong", "exercise", "mark"]
