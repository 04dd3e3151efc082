"""All benchmarks, one after another, each in a process of its own, into one JSON file for report.py.

    python examples/benchmarks/everything.py --json performance.json [--quick] [--openvino] [--compile]
    python examples/benchmarks/report.py performance.json

Prints the goals of goals.py beside what was measured. Takes 20 to 25 minutes on two cores with bfloat16
instructions, and ten more with OpenVINO, 20 GB of memory and 5 GB of disk, and wants a machine that does
nothing else. A run that was interrupted continues. `--quick` takes minutes and shows that all of it runs,
with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from goals import table
from machine import has_bf16_units, machine

HERE = Path(__file__).parent
# Other programs come and go: what is quick is timed more often.
FULL = {
    "attention": "--rounds 7",
    "convolution": "--rounds 3",
    "linear": "--rounds 3 --seconds 1",
    "unet_step": "--rounds 2 --seconds 60",
    "autoencoder": "--rounds 2 --pixels 512",
    "text_encoder": "--rounds 3 --seconds 5",
    "end_to_end": "--rounds 1",
    "loading": "--rounds 3",
    "tokenizer": "--rounds 7",
}
QUICK = {
    "attention": "--divide 16",
    "convolution": "--divide 8 --thin 16",
    "linear": "--divide 64",
    "unet_step": "--model small --size 8",
    "autoencoder": "--model small --pixels 32",
    "text_encoder": "--model small",
    "end_to_end": "--model bundled --pixels 64 --steps 2",
    "loading": "--model small",
    "tokenizer": "--prompts 200",
}
NETWORKS = ("unet_step", "autoencoder")  # which torch.compile and OpenVINO are also asked for


def measured(name: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One benchmark's results. OpenVINO beside the default alone: all at once need too much memory."""
    output = Path(folder, f"{name}.json")
    subprocess.run(command(name, args, output), check=True)
    found = json.loads(output.read_text(encoding="utf-8"))
    if args.openvino and name in NETWORKS:
        subprocess.run(
            [*command(name, args, output), "--openvino", "--only", "ldm_core", "OpenVINO"], check=True
        )
        for case in json.loads(output.read_text(encoding="utf-8"))["cases"]:
            found["cases"].append(case | {"case": f"{case['case']}, with OpenVINO"})
    return found


def command(name: str, args: argparse.Namespace, output: Path) -> list[str]:
    options = f"{QUICK[name]} --rounds 1 --matmul 256" if args.quick else FULL[name]
    words = [sys.executable, str(HERE / f"{name}.py"), *options.split(), "--json", str(output)]
    if args.threads:
        words += ["--threads", str(args.threads)]
    if args.dtype:
        words += ["--dtype", *args.dtype]
    elif name == "end_to_end":  # ten minutes in each type
        words += ["--dtype", "bfloat16" if has_bf16_units() else "float32"]
    if name in NETWORKS:
        words += ["--compile"] * args.compile
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="the file to write")
    parser.add_argument("--only", nargs="+", choices=FULL, default=list(FULL), help="these benchmarks")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--openvino", action="store_true", help="also OpenVINO (pip install openvino)")
    parser.add_argument("--compile", action="store_true", help="also diffusers under torch.compile")
    args = parser.parse_args()
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "only")}
    report = begun(args.json, settings)
    known = {benchmark["benchmark"] for benchmark in report["benchmarks"]}
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in args.only if name not in known):
            report["benchmarks"].append(measured(name, args, folder))
            report["machine"]["threads"] = report["benchmarks"][0]["machine"]["threads"]
            # After every one, so that an interrupted evening is not lost.
            args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"\n{table(report)}")


def begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report that an interrupted run with these settings left on this machine, or an empty one."""
    report = {"date": f"{date.today()}", "quick": settings["quick"], "machine": machine(), "benchmarks": []}
    report["settings"] = settings
    if path.exists():
        left = json.loads(path.read_text(encoding="utf-8"))
        if left.get("settings") == settings and left["machine"]["cpu"] == report["machine"]["cpu"]:
            return left
    return report


if __name__ == "__main__":
    main()
