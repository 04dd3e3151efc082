"""Fuzz the targets, guided by the coverage of ldm_core: `pip install atheris`, on Linux, and then

    python tests/fuzz/run.py pickle --minutes 60     one target, for an hour of processor time
    python tests/fuzz/run.py all --minutes 5         each in turn, five minutes each
    python tests/fuzz/run.py pickle --file FILE      one input, with its traceback (needs no atheris)
    python tests/fuzz/run.py pickle --shrink FILE    its smallest part with the same outcome, as FILE.small
    python tests/fuzz/run.py --report                a Markdown table of all runs so far

Under --folder (fuzz-out), which may be kept from run to run: corpus/TARGET, logs/, and findings/, where an
input that breaks a target's promise lies with its traceback. A finding does not stop the fuzzer: of those
that end in the same line of ldm_core the smallest input is kept. What ends the process (a crash, more than
25 s or 2 GiB) is written by libFuzzer as findings/TARGET-crash-…, -timeout-… or -oom-…, and the fuzzer is
started again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

NAMES = ("pickle", "recipe", "yaml", "safetensors", "shards", "tokenizer")
LIBFUZZER = ("-timeout=25", "-rss_limit_mb=2048", "-print_final_stats=1", "-max_len=65536")
MAX_RESTARTS = 100  # in one run of a target

Signature = tuple[str, str]


def main() -> int:
    args = _arguments()
    if args.report:
        print(report(args.folder))
        return 0
    if args.file or args.shrink:
        return _look_at(args.target, args.file or args.shrink, shrink=args.shrink is not None)
    if args.child:
        _fuzz(args.target, args.folder, args.seconds)
    for name in NAMES if args.target == "all" else (args.target,):
        _run(name, args.folder, args.minutes)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", default="all", choices=(*NAMES, "all"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--file", type=Path, help="execute the target on this file only")
    parser.add_argument(
        "--shrink", type=Path, help="make this file smaller, as long as its outcome is the same"
    )
    parser.add_argument("--report", action="store_true", help="print what all runs in the folder have done")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.file or args.shrink) and args.target == "all":
        parser.error("say which target the file is for")
    return args


def _run(name: str, folder: Path, minutes: float) -> None:
    """Fuzz one target for so many minutes of processor time, in processes of its own, each with a log."""
    left = 60 * minutes
    for inner in ("logs", "findings", f"corpus/{name}"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_RESTARTS):
        if left < 1:
            return
        log = folder / "logs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        command = [
            sys.executable,
            __file__,
            name,
            "--child",
            "--seconds",
            str(round(left)),
            "--folder",
            str(folder),
        ]
        before = os.times()
        with log.open("wb") as file:
            status = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        after = os.times()
        used = sum(after[2:4]) - sum(before[2:4])  # by the child, in user and in system mode
        with log.open("a") as file:
            print(f"\nprocessor seconds: {used:.0f}", file=file)
        left -= used
        print(f"{name}: {log} (status {status})", flush=True)


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ldm_core"]):
        from fuzz import targets
    from fuzz.seeds import seeds
    from fuzz.words import WORDS

    targets.warm_up()
    corpus, findings = folder / "corpus" / name, folder / "findings"
    for data in seeds(name):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    words = folder / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS[name]))

    def execute(data: bytes) -> None:
        found = outcome(name, data)
        if found is not None:
            _keep(findings, name, data, *found)

    options = [
        *LIBFUZZER,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={findings}/{name}-",
        f"-dict={words}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], execute)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def outcome(name: str, data: bytes) -> tuple[Signature, str] | None:
    """What one execution broke, if anything: where it ended, and the traceback."""
    from fuzz import targets

    try:
        targets.one(name, data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "ldm_core" in frame.filename] or frames
        what = re.sub(r"[0-9]+(\.[0-9]+)?", "N", str(error))[:40] if _is_broken_promise(error) else ""
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}"
        return (type(error).__name__, f"{place} {what}".strip()), traceback.format_exc()[-6000:]
    return None


def _is_broken_promise(error: BaseException) -> bool:
    from fuzz.watch import BrokenPromise

    return isinstance(error, BrokenPromise)


def _keep(findings: Path, name: str, data: bytes, signature: Signature, trace: str) -> None:
    """Write a finding, unless a smaller one of the same kind is there."""
    path = findings / f"{name}-{hashlib.sha1(repr(signature).encode()).hexdigest()[:10]}"
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{signature[0]} at {signature[1]}\n\n{trace}", errors="replace")


def _look_at(name: str, path: Path, *, shrink: bool) -> int:
    from fuzz import targets

    targets.warm_up()
    data = path.read_bytes()
    start = time.process_time()
    found = outcome(name, data)
    print(f"{name}, {len(data):,} bytes, {time.process_time() - start:.2f} s: ", end="")
    print("as it should be" if found is None else found[1])
    if found is None or not shrink:
        return 0 if found is None else 1
    small = _shrunk(name, data, found[0])
    path.with_name(path.name + ".small").write_bytes(small)
    print(f"{len(small):,} bytes have the same outcome: {small!r:.300}")
    return 1


def _shrunk(name: str, data: bytes, signature: Signature) -> bytes:
    """Pieces are left out, halves first and bytes last, wherever the outcome stays."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            shorter = data[:start] + data[start + size :]
            found = outcome(name, shorter)
            if found is not None and found[0] == signature:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def report(folder: Path) -> str:
    """A Markdown table from the logs: executions, processor hours, coverage of the last run, and findings."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for log in sorted((folder / "logs").glob("*.log")):
        name, _, began = log.stem.partition("-")
        text = log.read_text(errors="replace")
        lines = re.findall(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)/", text, re.MULTILINE)
        if lines:
            last = dict(zip(("executions", "edges", "features", "corpus"), map(int, lines[-1])))
            done = re.search(r"^Done (\d+) runs in (\d+) second", text, re.MULTILINE)
            began_at = time.mktime(time.strptime(began, "%Y%m%d-%H%M%S"))
            used = re.search(r"^processor seconds: (\d+)", text, re.MULTILINE)
            elapsed = int(done[2]) if done else max(0, round(log.stat().st_mtime - began_at))
            last["seconds"] = int(used[1]) if used else elapsed
            last["executions"] = max(last["executions"], int(done[1]) if done else 0)
            runs[name].append(last)
    rows = ["| target | executions | hours | per second | edges | features | corpus | findings |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in NAMES:
        if not runs[name]:
            continue
        executions, seconds = (sum(run[key] for run in runs[name]) for key in ("executions", "seconds"))
        best = {key: max(run[key] for run in runs[name]) for key in ("edges", "features", "corpus")}
        found = [path for path in (folder / "findings").glob(f"{name}-*") if path.suffix == ""]
        rows.append(
            f"| {name} | {executions:,} | {seconds / 3600:.2f} | {executions / max(seconds, 1):,.0f} "
            f"| {best['edges']:,} | {best['features']:,} | {best['corpus']:,} | {len(found)} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
