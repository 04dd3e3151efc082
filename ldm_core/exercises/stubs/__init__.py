"""The files to begin with, one for each exercise: `python -m ldm_core.exercises stub 3 > my.py`."""
