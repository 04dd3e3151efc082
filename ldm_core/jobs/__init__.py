"""Jobs: many pictures on one process, on torchrun or on Ray, which resume and always draw the same.

rows, sources, tables   what is drawn, and the files that it is read from
inputs, draw            from rows to pictures and recipes, without files: `Draw`
shards                  the files that are written
plan, job               an output folder and what belongs to it: `open_job`
running, on_ray         running a job: `run`, `run_on_ray`
checking                the check of the result: `verify`
"""

from ldm_core.jobs.checking import verify
from ldm_core.jobs.draw import Draw, Drawn, Options
from ldm_core.jobs.job import Job, Shard, open_job
from ldm_core.jobs.on_ray import run_on_ray
from ldm_core.jobs.rows import Row, row_seed
from ldm_core.jobs.running import Part, Summary, run
from ldm_core.jobs.sources import open_rows

__all__ = [
    "Draw",
    "Drawn",
    "Job",
    "Options",
    "Part",
    "Row",
    "Shard",
    "Summary",
    "open_job",
    "open_rows",
    "row_seed",
    "run",
    "run_on_ray",
    "verify",
]
