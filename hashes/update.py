"""Write the files beside this one anew from constraints.txt: `pip install uv && python hashes/update.py`.

The hashes come from PyPI, of every file of each pinned release, so that they serve every platform; nothing is
downloaded but metadata. Packages that constraints.txt does not pin, as PyTorch's CUDA libraries, get the
versions that the pinned ones ask for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
INDEX = "https://pypi.org/simple"
EXTRAS = ("test", "train", "gpu", "docs", "control", "bench", "web")
WITHOUT_DEPENDENCIES = ("open_clip_torch",)  # as the README installs it
OF_TORCH = re.compile(r"torch==|triton==|nvidia-|cuda-")  # what PyTorch's CPU builds do without, and PyTorch

HEADS = {
    "torch": "PyTorch as PyPI has it, on Linux with CUDA. PyTorch's own index has other files.",
    "runtime": "What ldm_core needs beside PyTorch.",
    "test": "What the tests, benchmarks, figures and the web page need beside that; install with --no-deps.",
}
ORIGIN = "Written by hashes/update.py from constraints.txt; docs/security.md says how to use it."


def main() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = str(ROOT / "pyproject.toml")
    needed = compiled(pins, project)
    everything = compiled(pins, project, *(f"--extra={extra}" for extra in EXTRAS))
    alone = compiled(pins, "-", "--no-deps", given="\n".join(WITHOUT_DEPENDENCIES))
    write("torch", [entry for entry in needed if OF_TORCH.match(entry)])
    write("runtime", [entry for entry in needed if not OF_TORCH.match(entry)])
    names = {name_of(entry) for entry in needed}
    write("test", sorted(entry for entry in (*everything, *alone) if name_of(entry) not in names))


def compiled(pins: str, source: str, *options: str, given: str = "") -> list[str]:
    """The entries, each a requirement with its hashes, that `source` needs on any platform under the pins."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(pins, encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            source,
            "--quiet",
            "--no-config",
            "--universal",
            "--python-version=3.11",
        ]
        command += ["--generate-hashes", "--no-annotate", "--no-header", f"--default-index={INDEX}"]
        command += [f"--constraints={constraints}", *options]
        run = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return re.findall(r"^[^\s#].*(?:\n[ ].*)*", run.stdout, re.MULTILINE)


def name_of(entry: str) -> str:
    return entry.partition("==")[0]


def write(name: str, entries: list[str]) -> None:
    text = "\n".join((f"# {HEADS[name]}", f"# {ORIGIN}", *entries, ""))
    (HERE / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{name}.txt: {len(entries)} packages")


if __name__ == "__main__":
    main()
