"""One module for each exercise, with a generator `check(answer)`; see `ldm_core.exercises.marking.mark`."""
