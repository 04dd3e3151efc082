"""Damage to the bytes of a file, drawn by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Edit = tuple[str, float, Any]


INTERESTING = st.sampled_from(
    [
        b"\0",
        b"\xff",
        b"\xff" * 4,
        b"\x7f" * 8,
        b".",
        b"R",
        b"(",
        b"b",
        b"\x93",
        b"cos\nsystem\n",
        b"PK\5\6",
        b"{",
    ]
)
PLACE = st.floats(0, 1, exclude_max=True)  # as a fraction of the file's length


VALUE = INTERESTING | st.binary(max_size=8)


EDITS = st.lists(
    st.tuples(st.just("flip"), PLACE, st.integers(1, 255))
    | st.tuples(st.sampled_from(["overwrite", "insert"]), PLACE, VALUE)
    | st.tuples(st.just("delete"), PLACE, st.integers(1, 40))
    | st.tuples(st.just("cut"), PLACE, st.none()),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, edits: list[Edit]) -> bytes:
    for kind, place, value in edits:
        at = int(place * len(data))
        if kind == "flip":
            data = data[:at] + bytes(byte ^ value for byte in data[at : at + 1]) + data[at + 1 :]
        elif kind == "overwrite":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + value :]
        else:
            data = data[:at]
    return data
