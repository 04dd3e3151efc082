"""Valid files, damaged at random: the outcome is always a Checkpoint or a CheckpointError, and soon.

While a file is read, an audit hook watches the interpreter: nothing is imported, compiled, run or started,
and no file but this one is opened. Memory is bounded by the file's size.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoint_files import fake_class, torch_bytes, torch_zip
from support.damage import EDITS, INTERESTING, Edit, damaged

from ldm_core.checkpoint.reader import read
from ldm_core.errors import CheckpointError


def without_checksums(archive: bytes) -> bytes:
    """With zeros in the directory, as torch may write them: or else all damage would be found by them."""
    return re.sub(rb"(PK\x01\x02.{12}).{4}", rb"\1\0\0\0\0", archive, flags=re.DOTALL)


def whole_files() -> dict[str, bytes]:
    flat = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "c": torch.tensor(5)}
    with fake_class("some_callbacks.module", "Callback") as callback:
        value = {
            "epoch": 3,
            "state_dict": flat,
            "callbacks": {callback: {"best": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(6)}}, "lr": 1e-4}],
        }
        return {
            "zip": without_checksums(torch_bytes(value)),
            "zip, protocol 4": without_checksums(torch_bytes(value, protocol=4)),
            "legacy": torch_bytes(value, legacy=True),
            "safetensors": safetensors.torch.save(flat, {"format": "pt"}),
        }


FILES = whole_files()
SLACK = 2**21  # bytes: Python's own objects for the smallest of files
# What reading does to the interpreter: open and map one file, and compare objects by identity. (Hypothesis
# looks at frames while it explains a failure.)
EXPECTED = {"open", "mmap.__new__", "builtins.id", "object.__getattr__"}
watching = False
seen: list[str] = []


def audit(event: str, args: tuple[Any, ...]) -> None:
    if watching and (event not in EXPECTED or (event == "open" and "damaged.ckpt" not in str(args[0]))):
        seen.append(f"{event}{args!r:.80}")


sys.addaudithook(audit)


@contextmanager
def watched(size: int) -> Iterator[None]:
    """Nothing runs within, in a bounded time and memory."""
    global watching
    seen.clear()
    tracemalloc.start()  # here only: Hypothesis takes seven times as long when it is traced
    start, watching = time.process_time(), True
    try:
        yield
    finally:
        watching = False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seen == [], "; ".join(seen)
    assert time.process_time() - start < 5
    assert peak < 2 * size + SLACK


@pytest.fixture(autouse=True, scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported when it is first needed is imported before anything is watched."""
    codecs.lookup("cp437")  # of the names in zip archives, unless they say UTF-8
    warm = tmp_path_factory.mktemp("warm") / "whole.ckpt"
    for data in FILES.values():
        warm.unlink(missing_ok=True)
        warm.write_bytes(data)
        read(warm, values=False)
        read(warm)


def assert_read_or_refused(folder: Path, data: bytes) -> None:
    path = folder / "damaged.ckpt"
    # A new file each time, for the old one may still be mapped.
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        with watched(len(data)):
            checkpoint = read(path)
    except CheckpointError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert checkpoint.tensors
        json.dumps(checkpoint.metadata)
        for name, tensor in checkpoint.tensors.items():
            name.encode()
            assert tensor.clone().numel() <= max(2**16, len(data))
        # Without values, nothing more can be wrong.
        assert list(read(path, values=False).tensors) == list(checkpoint.tensors)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in checkpoint.tensors.values()}
        assert sum(storage.nbytes() for storage in storages.values()) <= 2 * len(data)


def fuzz(examples: int) -> settings:
    # The folder is shared by the examples of a test on purpose, and building an edit is slow to begin with.
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


@pytest.mark.parametrize("kind", FILES)
@fuzz(25)
@given(edits=EDITS)
def test_damaged_files(tmp_path: Path, kind: str, edits: list[Edit]) -> None:
    assert_read_or_refused(tmp_path, damaged(FILES[kind], edits))


@pytest.mark.exhaustive  # the fuzzers of tests/fuzz, which coverage guides, have run millions
@pytest.mark.parametrize("kind", FILES)
@fuzz(1_250)
@given(edits=EDITS)
def test_5000_damaged_files(tmp_path: Path, kind: str, edits: list[Edit]) -> None:
    assert_read_or_refused(tmp_path, damaged(FILES[kind], edits))


@fuzz(200)
@given(instructions=st.lists(INTERESTING | st.binary(min_size=1, max_size=2), max_size=60))
def test_random_instructions(tmp_path: Path, instructions: list[bytes]) -> None:
    """They reach what damage to a good pickle does not."""
    assert_read_or_refused(tmp_path, torch_zip(b"\x80\x04" + b"".join(instructions) + b"."))
