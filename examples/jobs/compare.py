"""Compare the output folders of one job: recipes byte by byte, and the largest difference of a pixel.

python compare.py one/ two/ ray/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from ldm_core.images import open_picture
from ldm_core.jobs.plan import read_plan
from ldm_core.jobs.shards import FORMATS


def compare(first: Path, second: Path) -> str:
    plan, counts, largest = read_plan(first), {"rows": 0, "equal pictures": 0, "equal recipes": 0}, 0
    for number in range(plan.shards):
        read = FORMATS[plan.format].read
        pairs = zip(read(plan.path_of(first, number)), read(plan.path_of(second, number)), strict=True)
        for (key, png, record), (other_key, other_png, other_record) in pairs:
            assert key == other_key
            if png is not None and other_png is not None:
                a, b = (np.asarray(open_picture(data)).astype(int) for data in (png, other_png))
                counts["equal pictures"] += bool(np.array_equal(a, b))
                largest = max(largest, int(abs(a - b).max()))
            if record is not None and other_record is not None:
                recipes = [json.dumps(json.loads(text).get("recipe")) for text in (record, other_record)]
                counts["rows"] += 1
                counts["equal recipes"] += recipes[0] == recipes[1]
    named = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{first} and {second}: {named}; pixels differ by at most {largest} of 255 levels"


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    for other in folders[1:]:
        print(compare(folders[0], other))
