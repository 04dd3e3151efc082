"""Files made to do harm: nothing in them runs, and reading them takes little time and memory.

Each pickle of the corpus is put where a checkpoint's pickle lies (in a zip archive, in a legacy file, as a
bare pickle, and beside good tensors) and read in a process whose audit hook sees whatever Python opens,
imports, compiles or starts.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_files import legacy_file, tensor_pickle, torch_bytes, torch_zip, zip_members
from support.hostile_pickles import (
    BOMBS,
    CANARY,
    CANARY_MODULE,
    COMMAND,
    PICKLES,
    TENSOR,
    WRITE,
    beside_tensors,
    program,
)

from ldm_core.checkpoint.pickle_reader import PickleReader, PickleStream
from ldm_core.checkpoint.pickle_values import InertObject
from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.state_dict import split
from ldm_core.checkpoint.work_budget import CONSTANT, Budget
from ldm_core.errors import CheckpointError

STORAGE = (["0"], struct.pack("<q", 4) + bytes(16))


def files_with(pickled: bytes) -> dict[str, bytes]:
    """The kinds of file that may hold this pickle."""
    files = {
        "bare": pickled,
        "zip": torch_zip(pickled, {"0": bytes(16)}),
        "legacy": legacy_file(pickled, *(STORAGE if b"FloatStorage" in pickled else ())),
    }
    if pickled[:1] == b"\x80" and pickled.endswith(b"."):
        files["beside tensors"] = torch_zip(beside_tensors(pickled[2:-1]), {"0": bytes(16)})
    return files


AUDIT_SCRIPT = """
import codecs, json, sys
from pathlib import Path
from ldm_core.errors import CheckpointError
from ldm_core.checkpoint.reader import read

# Codecs of the standard library, of fixed names, that reading imports when it meets the first text of a kind.
for name in ("raw-unicode-escape", "cp437", "utf-32-le"):
    codecs.lookup(name)
events, outcomes, modules, watching = [], {}, set(sys.modules), None
def hook(event, args):
    if watching and not (event == "open" and str(args[0]) == watching):
        events.append(f"{watching}: {event} {args!r}"[:300])
sys.addaudithook(hook)
for path in sorted(Path(sys.argv[1]).iterdir()):
    watching = str(path)
    try:
        checkpoint = read(path)
        outcome = ["read", list(checkpoint.foreign)]
    except CheckpointError as error:
        outcome = ["refused", str(error)]
    watching = None
    outcomes[path.name] = outcome
imported = sorted(set(sys.modules) - modules)
print(json.dumps({"events": events, "imported": imported, "outcomes": outcomes}))
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every file of the corpus, read in a process of its own that watches itself."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    for name, pickled in PICKLES.items():
        for kind, data in files_with(pickled).items():
            (folder / "files" / f"{name} ({kind})").write_bytes(data)
    (folder / f"{CANARY_MODULE}.py").write_text(WRITE)
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{folder}"}
    command = [sys.executable, "-c", AUDIT_SCRIPT, str(folder / "files")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)
    assert not (folder / CANARY).exists()
    result: dict[str, Any] = json.loads(output.stdout)
    return result


def test_the_payloads_are_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library's unpickler sets them off: what the other tests find harmless is not a dud."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{CANARY_MODULE}.py").write_text(WRITE)
    for name in (
        "reduce os.system", "reduce eval", "reduce exec, protocol 0", "reduce __import__", "reduce getattr",
        "reduce pickle.loads", "inst", "obj", "global, text", "stack_global",
    ):  # fmt: skip
        pickle.loads(PICKLES[name])
        sys.modules.pop(CANARY_MODULE, None)
        assert (tmp_path / CANARY).exists(), name
        (tmp_path / CANARY).unlink()


def test_nothing_in_the_corpus_runs(audited: dict[str, Any]) -> None:
    # Each file is opened and mapped, and Python reports id() too. No other event of the interpreter happens:
    # no import, exec, compile, process, or second file.
    assert audited["imported"] == []
    names = {event.split(": ", 1)[1].split()[0] for event in audited["events"]}
    assert names == {"mmap.__new__", "builtins.id"}


def test_the_corpus_is_refused_or_inert(audited: dict[str, Any]) -> None:
    assert len(audited["outcomes"]) >= 3 * len(PICKLES) >= 200
    for name, (outcome, detail) in audited["outcomes"].items():
        if outcome == "refused":
            assert detail.isprintable()  # one line, too
            assert len(detail) < 700
        else:
            assert name.endswith("(beside tensors)"), name


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("reduce os.system", "posix.system"),
        ("reduce eval", "__builtin__.eval"),
        ("reduce exec, protocol 1", "__builtin__.exec"),
        ("reduce subprocess", "subprocess.Popen"),
        ("reduce getattr", "builtins.getattr, builtins.__import__"),
        ("reduce torch.load", "torch.serialization.load"),
        ("stack_global", "posix.system"),
        ("global of a dotted name", "os.path.os.system"),
        ("global, text", "posix.system"),
        ("inst", "posix.system"),
        ("newobj_ex", "posix.system"),
        ("copyreg.add_extension", "copyreg.add_extension"),
        ("name that draws on the terminal", r"posix\x1b[2J.system\x07"),
    ],
)
def test_the_error_names_what_would_have_run(audited: dict[str, Any], name: str, foreign: str) -> None:
    for kind in ("zip", "legacy", "bare"):
        outcome, detail = audited["outcomes"][f"{name} ({kind})"]
        assert outcome == "refused"
        assert foreign in detail


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("reduce os.system", ["posix.system"]),
        ("reduce eval", ["__builtin__.eval"]),
        ("reduce pickle.loads", ["_pickle.loads"]),
        ("newobj", ["posix.system"]),
        ("build of __class__", ["posix.system"]),
        ("persistent id, a module", ["posix.system"]),
        ("numpy array of objects", ["posix.system"]),
    ],
)
def test_beside_good_tensors_it_is_reported(audited: dict[str, Any], name: str, foreign: list[str]) -> None:
    assert audited["outcomes"][f"{name} (beside tensors)"] == ["read", foreign]


def read_or_refuse(path: Path) -> int:
    """The length of the metadata as JSON, or 0 for a CheckpointError; any other error is a failure."""
    try:
        return len(json.dumps(read(path).metadata))
    except CheckpointError:
        return 0


@pytest.mark.one_in(14)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_time(tmp_path: Path, name: str) -> None:
    files = files_with(BOMBS[name]())
    for kind in ("zip", "beside tensors"):
        path = tmp_path / f"{kind}.ckpt"
        path.write_bytes(files[kind])
        start = time.process_time()
        # 100,000 values are shown at most, a text of 64 characters counting as one.
        assert read_or_refuse(path) < 10_000_000
        # The whole budget takes about 1 s.
        assert time.process_time() - start < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encode over and over", "long arguments with keywords"])
def test_a_bomb_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(torch_zip(BOMBS[name]()))
    tracemalloc.start()
    read_or_refuse(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What the reader copies is limited to 128 MiB; run as written, these would take 20 GB.
    assert peak < 200e6


class Count(Budget):
    spent = 0

    def spend(self, cost: int) -> None:
        self.spent += cost


def test_a_whole_training_checkpoint_costs_a_fraction_of_the_budget() -> None:
    state = {f"model.diffusion_model.blocks.{n}.weight": torch.zeros(1, 1) for n in range(1131)}
    moments = {n: {"step": n, "exp_avg": t, "exp_avg_sq": t} for n, t in enumerate(state.values())}
    data = torch_bytes({"state_dict": state, "optimizer_states": [{"state": moments}]})
    pickled = zip_members(data)["archive/data.pkl"]
    budget = Count(0)
    reader = PickleReader(budget)
    root = reader.load(PickleStream(pickled))
    split(root, lambda ref: torch.UntypedStorage(ref.nbytes), budget)
    assert CONSTANT / 100 < budget.spent < CONSTANT / 8


@pytest.mark.parametrize("step", [1, -1, 1000])
def test_a_vocabulary_by_number_costs_a_fraction_of_the_budget(step: int) -> None:
    """As CLIP's tokenizer has one, which some checkpoints hold."""
    words = {n * step: f"word{n}" for n in range(49_408)}
    budget = Count(0)
    read = PickleReader(budget).load(PickleStream(pickle.dumps(words)))
    assert list(map(str, read)) == list(map(str, words))
    assert list(read.values()) == list(words.values())
    assert budget.spent < CONSTANT / 4


LYING_TENSORS: dict[str, dict[str, Any]] = {
    "storage longer than its member": {"numel": 5},
    "storage shorter than its member": {"numel": 3, "size": (3,)},
    "negative storage": {"numel": -4},
    "storage of 2**62": {"numel": 2**62, "size": (2**62,)},
    "storage named by a number": {"key": 0},
    "storage that is missing": {"key": "1"},
    "storage outside the folder": {"key": "../../../etc/passwd"},
    "unknown kind of reference": {"tag": "file"},
    "quantized storage": {"storage": "QInt8Storage"},
    "other dtype than the bytes": {"storage": "DoubleStorage"},
    "untyped storage": {"storage": "UntypedStorage"},
    "size out of bounds": {"size": (5,)},
    "offset out of bounds": {"offset": 1},
    "offset far out of bounds": {"offset": 2**62},
    "negative offset": {"offset": -1},
    "stride out of bounds": {"stride": (2,)},
    "negative stride": {"stride": (-1,), "offset": 3},
    "negative size": {"size": (-4,)},
    "two negative sizes": {"size": (-2, -2), "stride": (2, 1)},
    "sizes that overflow 64 bits": {"size": (2**33, 2**33), "stride": (0, 0)},
    "empty with a huge size": {"size": (0, 2**62), "stride": (0, 0)},
    "expanded to terabytes": {"size": (2**40,), "stride": (0,)},
    "strides that overflow 64 bits": {"size": (2, 2), "stride": (2**62, 2**62)},
    "size beyond 64 bits": {"size": (2**70,)},
    "more strides than sizes": {"stride": (1, 1)},
    "a thousand dimensions": {"size": (1,) * 1000, "stride": (1,) * 1000},
    "sizes that are text": {"size": ("4",)},
    "sizes that are true": {"size": (True,)},
    "sizes that are no tuple": {"size": 4},
    "offset that is a fraction": {"offset": 0.5},
    "name that is a number too large": {"name": 2**80},
    "name of 5,000 letters": {"name": "n" * 5_000},
    "name that is no text": {"name": None},
}


@pytest.mark.parametrize("claims", LYING_TENSORS.values(), ids=LYING_TENSORS.keys())
def test_tensors_that_lie_about_themselves(tmp_path: Path, claims: dict[str, Any]) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_zip(tensor_pickle(**claims), {"0": bytes(16)}))
    with pytest.raises(CheckpointError):
        read(path)
    path.write_bytes(legacy_file(tensor_pickle(**claims), *STORAGE))
    with pytest.raises(CheckpointError):
        read(path)


def test_one_storage_described_in_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    other = tensor_pickle(storage="IntStorage")[2:-1]
    path.write_bytes(torch_zip(program(b"(", TENSOR, other, b"t"), {"0": bytes(16)}))
    with pytest.raises(CheckpointError, match="two different descriptions of the storage '0'"):
        read(path)


def test_what_a_pickle_becomes() -> None:
    """Values as pickle gives them, and records where pickle would act."""
    values = [
        1,
        -1,
        2**80,
        1.5,
        None,
        True,
        "é",
        b"x",
        [1, [2]],
        {"a": (1, 2, 3, 4)},
        {1, 2},
        1j,
        bytearray(b"z"),
    ]
    for protocol in range(6):
        # Protocols 0 and 1 rebuild a set and a complex number by copyreg, a foreign function like any other.
        expected = [
            v for v in values if protocol >= 2 or not isinstance(v, set | complex | bytes | bytearray)
        ]
        loaded = PickleReader(Budget(0)).load(PickleStream(pickle.dumps(expected, protocol)))
        assert loaded == expected
    reader = PickleReader(Budget(0))
    record = reader.load(PickleStream(PICKLES["reduce os.system"]))
    assert isinstance(record, InertObject)
    assert (record.name, record.args) == ("posix.system", (COMMAND,))
    assert reader.foreign == ["posix.system"]
