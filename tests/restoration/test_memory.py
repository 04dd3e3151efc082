"""The memory of large photos: beside the photo, its result alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDTH, HEIGHT = 8000, 8000
MEASURE = """
import resource, sys
import torch
from PIL import Image
from support.faces import astronaut
from ldm_core.restoration import restore

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

width, height = map(int, sys.argv[1:])
torch.set_num_threads(1)
face = astronaut()
darker = lambda x: 0.9 * x
restore(face, darker)  # what is allocated once
photo = Image.new("RGB", (width, height), "white")
photo.paste(face.resize((1000, 1000)), (3000, 2000))
before = peak()
result = restore(photo, darker)
assert result.crop((3000, 2000, 4000, 3000)) != photo.crop((3000, 2000, 4000, 3000))
print(peak() - before)
"""


@pytest.mark.slow  # 64 million pixels
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_large_photo_is_not_copied_twice() -> None:
    """The peak grows by the result, in Pillow's 4 bytes of a pixel, and by 128 MiB at most (measured: 59)."""
    # glibc returns what is freed, so that the peak is of what is in use.
    limits = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(WIDTH), str(HEIGHT)],
        env=environment, capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert float(done.stdout) < 4 * WIDTH * HEIGHT / 2**20 + 128
