"""The fuzzer's targets keep their promises on what it starts from and on some hundred changes of that.

Here without guidance and the same each time; `tests/fuzz/run.py` goes on from the same inputs for hours.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fuzz import run, targets, watch
from fuzz.seeds import seeds
from fuzz.words import WORDS
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

SEEDS = {name: seeds(name) for name in targets.TARGETS}
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8))  # where, what length, by what


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    targets.warm_up()


def changed(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, by in changes:
        at = int(place * len(data))
        data = data[:at] + by + data[at + length :]
    return data


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_keep_the_promises(name: str) -> None:
    assert len(SEEDS[name]) >= 5
    for data in SEEDS[name]:
        assert len(data) <= watch.MAX_INPUT
        targets.one(name, data)


@pytest.mark.parametrize("name", targets.TARGETS)
@examples(40, derandomize=True)
@given(data=st.data())
def test_changed_seeds_keep_the_promises(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    targets.one(name, changed(seed, data.draw(st.lists(CHANGES, min_size=1, max_size=3))))


def test_every_target_has_its_oracle_and_its_words() -> None:
    assert list(targets.TARGETS) == list(run.NAMES) == list(WORDS)
    for target in targets.TARGETS.values():
        assert "Oracle: " in (target.__doc__ or "")


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda: open(__file__).close(),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"], check=False),
        lambda: socket.socket().close(),
        lambda: os.listdir("."),
        lambda: exec("1"),
        lambda: __import__("this"),
    ],
)
def test_what_reaches_outside_is_seen(forbidden: Callable[[], Any]) -> None:
    with pytest.raises(watch.BrokenPromise), watch.watched():
        forbidden()


def test_what_is_caught_or_slow_or_large_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(watch.BrokenPromise, match="reached outside"),
        watch.watched(),
        suppress(BaseException),
    ):
        os.listdir(".")
    monkeypatch.setattr(watch, "MAX_SECONDS", 0.0)
    with pytest.raises(watch.BrokenPromise, match=r"took [0-9.]+ s"), watch.watched():
        sum(range(1000))
    monkeypatch.setattr(watch, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(watch, "MAX_MEMORY", -1)
    with pytest.raises(watch.BrokenPromise, match=r"took [0-9]+ MiB"), watch.watched():
        pass


def test_a_finding_is_kept_once_and_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        assert b"bad" not in data, "found"

    monkeypatch.setitem(targets.TARGETS, "yaml", fragile)
    assert run.outcome("yaml", b"good") is None
    for data in (b"a bad one", b"bad one", b"quite a bad one"):
        found = run.outcome("yaml", data)
        assert found is not None
        run._keep(tmp_path, "yaml", data, *found)
    kept, trace = sorted(tmp_path.iterdir())
    assert kept.read_bytes() == b"bad one"
    assert "AssertionError" in trace.read_text()
    assert run._shrunk("yaml", b"a bad one", found[0]) == b"bad"


def test_the_report_adds_the_runs_of_a_target(tmp_path: Path) -> None:
    for folder in ("logs", "findings"):
        (tmp_path / folder).mkdir()
    log = "#2\tINITED cov: 90 ft: 100 corp: 2/9b exec/s: 0\n#8192\tpulse  cov: 99 ft: 120 corp: 5/1Kb\n"
    for day in ("20260101", "20260102"):
        whole = f"INFO: seed\n{log}Done 9000 runs in 1800 second(s)\n"
        (tmp_path / "logs" / f"yaml-{day}-000000.log").write_text(whole)
    (tmp_path / "findings" / "yaml-abc").write_bytes(b"x")
    assert run.report(tmp_path).splitlines()[2:] == ["| yaml | 18,000 | 1.00 | 5 | 99 | 120 | 5 | 1 |"]
