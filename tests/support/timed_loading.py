"""Loading a checkpoint in a process of its own, and the time and memory that it takes there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# The peak of a process never falls. VmHWM counts mapped pages, too.
MEASURE = """
import json, sys, time
import torch, ldm_core
path, how, settings = sys.argv[1:]
if how == "diffusers":
    from diffusers import StableDiffusionPipeline
load = ldm_core.load  # its first use imports it
def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
before = peak_memory()
start = time.perf_counter()
if how == "ldm_core":
    model = load(path)
    tensors = [p for m in model.modules.values() for p in m.parameters()]
elif how == "diffusers":
    model = StableDiffusionPipeline.from_single_file(path, config=settings, local_files_only=True)
    tensors = [p for m in (model.unet, model.vae, model.text_encoder) for p in m.parameters()]
elif path.endswith(".safetensors"):
    from safetensors import safe_open
    file = safe_open(path, "pt")
    tensors = [file.get_tensor(key) for key in file.keys()]
else:
    tensors = list(torch.load(path, mmap=True, weights_only=True)["state_dict"].values())
loaded = time.perf_counter() - start
for tensor in tensors:
    tensor.sum()
seconds = time.perf_counter() - start
print(json.dumps({"loaded": loaded, "seconds": seconds, "peak": peak_memory() - before}))
"""


def measure(path: Path, how: str, settings: Path | str = "") -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), how, str(settings)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
