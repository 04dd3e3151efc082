"""Pickles made to do harm. Each would, if it were unpickled, run something, import something, or take all
the time and memory there is; the reader's tests see that reading them does none of it."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from support.checkpoint_files import tensor_pickle

# The command of every payload would create this file in the working directory.
CANARY = "the_canary_was_touched"
COMMAND = f"touch {CANARY}"
WRITE = f"open('{CANARY}', 'w')"
CANARY_MODULE = "canary_module"  # importing it would create the file too


class Calls:
    """Pickled by the standard pickler, a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.parts = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def call(function: Callable[..., Any], *args: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(Calls(function, *args), protocol)


# A small assembler: instructions by hand, for what the standard pickler never writes


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def program(*parts: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


TENSOR = tensor_pickle()[2:-1]  # {"w": four float32 in the storage "0"}, without its frame
SYSTEM = name("posix", "system")
ARGS = group(text(COMMAND))
CALL = SYSTEM + ARGS + b"R"


def beside_tensors(payload: bytes) -> bytes:
    """{"state_dict": TENSOR, "callbacks": payload}: the file is otherwise a good one."""
    return program(b"}(", text("state_dict"), TENSOR, text("callbacks"), payload, b"u", protocol=4)


PICKLES: dict[str, bytes] = {
    # Calls
    "reduce os.system": call(os.system, COMMAND),
    "reduce eval": call(eval, WRITE, protocol=2),
    "reduce exec, protocol 0": call(exec, WRITE, protocol=0),
    "reduce exec, protocol 1": call(exec, WRITE, protocol=1),
    "reduce subprocess": call(subprocess.Popen, ["touch", CANARY]),
    "reduce __import__": call(__import__, CANARY_MODULE),
    "reduce open": call(open, CANARY, "w"),
    "reduce compile": call(compile, WRITE, "x", "exec"),
    "reduce torch.load": call(torch.load, CANARY),
    "reduce pickle.loads": call(pickle.loads, call(os.system, COMMAND)),
    "reduce getattr": program(
        name("builtins", "getattr"),
        group(name("builtins", "__import__"), group(text("os")), b"R", text("system")),
        b"R" + ARGS + b"R",
    ),
    "inst": b"(S'" + COMMAND.encode() + b"'\niposix\nsystem\n.",
    "obj": program(b"(", SYSTEM, text(COMMAND), b"o"),
    "newobj": program(SYSTEM, ARGS, b"\x81"),
    "newobj_ex": program(SYSTEM, ARGS, b"}", text("shell"), b"\x88s\x92", protocol=4),
    "call of a result": program(CALL, b")R" * 50),
    "call of a dict": program(b"})R"),
    "call without arguments": program(SYSTEM, b"NR"),
    # Names
    "global of a module to import": program(name(CANARY_MODULE, "x")),
    "inst of a module to import": f"(i{CANARY_MODULE}\nx\n.".encode(),
    "global, text": SYSTEM + b"(S'" + COMMAND.encode() + b"'\ntR.",
    "global of a dotted name": program(text("os"), text("path.os.system"), b"\x93", ARGS, b"R", protocol=4),
    "stack_global": program(text("posix"), text("system"), b"\x93", ARGS, b"R", protocol=4),
    "stack_global of numbers": program(b"K\1K\2\x93", protocol=4),
    "name that draws on the terminal": program(name("posix\x1b[2J", "system\7"), ARGS, b"R"),
    "name with half a surrogate": program(b"X\3\0\0\0\xed\xa0\x80", text("x"), b"\x93)R", protocol=4),
    "name of 60,000 letters": program(name("x" * 60_000, "y"), b")R"),
    # States
    "build with a state": program(CALL, b"}", text("__setstate__"), SYSTEM, b"sb"),
    "build of __class__": program(SYSTEM, b"}", text("__class__"), SYSTEM, b"sb"),
    "build with slots": program(SYSTEM, b"N}", text("__reduce__"), SYSTEM, b"s\x86b"),
    "build on a known class": program(name("collections", "OrderedDict"), b"}", text("x"), SYSTEM, b"sb)R"),
    "append on a class": program(SYSTEM, b"(K\1K\2e"),
    "setitems on a class": program(SYSTEM, b"(", text("a"), SYSTEM, b"u"),
    "append to a dict": program(b"}K\1a"),
    "set an item of a list": program(b"]K\1K\2s"),
    "add to a list": program(b"](K\1\x90", protocol=4),
    # The extension registry
    "ext1": program(b"\x82\1"),
    "ext2": program(b"\x83\1\1"),
    "ext4": program(b"\x84\1\1\1\1"),
    "copyreg.add_extension": program(
        name("copyreg", "add_extension"), group(text("posix"), text("system"), b"K\1"), b"R"
    ),
    "copyreg._reconstructor": program(name("copy_reg", "_reconstructor"), group(SYSTEM, SYSTEM, b"N"), b"R"),
    # Functions that the reader knows
    "tensor of wrong arguments": program(name("torch._utils", "_rebuild_tensor_v2"), ARGS, b"R"),
    "parameter of a call": program(name("torch._utils", "_rebuild_parameter"), group(CALL, b"NN"), b"R"),
    "rebuild_from_type of a function": program(
        name("torch._tensor", "_rebuild_from_type_v2"), group(SYSTEM, SYSTEM, ARGS, b"N"), b"R"
    ),
    "rebuild_from_type of itself": program(
        name("torch._tensor", "_rebuild_from_type_v2"), b"q\0(h\0N" + group(b"h\0N", ARGS, b"N") + b"NtR"
    ),
    "defaultdict with a factory": program(
        name("collections", "defaultdict"), SYSTEM, b"\x85R", text("x"), b"K\1s"
    ),
    "codecs.encode by another codec": program(
        name("_codecs", "encode"), group(text("x"), text("idna")), b"R"
    ),
    "newobj_ex of a known class": program(
        name("collections", "OrderedDict"), b")}", text("a"), b"K\1s\x92", protocol=4
    ),
    "numpy.load": program(name("numpy", "load"), ARGS, b"R"),
    "numpy array of objects": program(
        name("numpy.core.multiarray", "_reconstruct"), ARGS, b"R",
        b"(K\1" + group(b"K\1"),
        name("numpy", "dtype"), group(text("O8"), b"\x89\x88"), b"R" + group(b"K\3", text("|"), b"N") + b"b",
        b"\x89](", CALL, b"etb",
    ),
    # References to data outside the pickle
    "persistent id, text": program(b"P", COMMAND.encode(), b"\n"),
    "persistent id, foreign storage": program(
        group(text("storage"), SYSTEM, text("0"), text("cpu"), b"K\1"), b"Q"
    ),
    "persistent id, a number": program(b"K\1Q"),
    "persistent id, a module": program(group(text("module"), SYSTEM, text("x.py"), text(WRITE)), b"Q"),
    "out-of-band buffer": program(b"\x97", protocol=5),
    "read-only buffer": program(b"C\1x\x98", protocol=5),
    # Keys
    "key that is a list": program(b"}]K\1s"),
    "key that is a tensor": program(b"}", TENSOR, b"K\1s"),
    "key that is a dict": program(b"}}K\1s"),
    # Damage
    "unknown protocol": program(b"}", protocol=255),
    "unknown instruction": program(b"\xff"),
    "stack underflow": program(b"0"),
    "take beyond a mark": program(b"K\1(\x85"),
    "mark left open": program(b"K\1("),
    "no value": program(),
    "two values": program(b"K\1K\1"),
    "missing memo": program(b"h\5"),
    "no end": b"\x80\2}",
    "bytes8 longer than memory": program(b"\x8e", struct.pack("<Q", 2**62), b"x", protocol=4),
    "unicode8 beyond 64 bits": program(b"\x8d", b"\xff" * 8, b"x", protocol=4),
    "bytearray8 longer than memory": program(b"\x96", struct.pack("<Q", 2**40), b"x", protocol=5),
    "long4 longer than the file": program(b"\x8b", struct.pack("<i", 2**31 - 1), b"x"),
    "long4 negative": program(b"\x8b", struct.pack("<i", -5), b"x"),
    "fraction of 60,000 letters": b"F" + b"x" * 60_000 + b"\n.",
    "integer of 60,000 digits": b"L" + b"9" * 60_000 + b"L\n.",
    "list within itself": program(b"]q\0h\0a"),
    "dict within itself": program(b"}q\0", text("state_dict"), b"h\0s"),
}  # fmt: skip


def colliding_integers(count: int) -> bytes:
    """Keys that all have the hash 0, because integers hash modulo 2**61 - 1."""
    return b"".join(b"\x8a\x0d" + (n * (2**61 - 1)).to_bytes(13, "little") + b"K\1" for n in range(1, count))


def numpy_arrays(shape: bytes, data: bytes, is_fortran: bytes = b"\x89", count: int = 20_000) -> bytes:
    """Records of so many arrays, all of the same state."""
    dtype = name("numpy", "dtype") + group(text("u1"), b"\x89\x88") + b"R"
    dtype += group(b"K\3", text("|"), b"N") + b"b"
    state = group(b"K\1", shape, dtype, is_fortran, data) + b"q\1" + b"0"
    entries = b"".join(text(f"a{n}") + b"h\0)Rh\1b" for n in range(count))
    return program(name("numpy.core.multiarray", "_reconstruct"), b"q\0" + b"0", state, b"}(", entries, b"u")


def numbers(*values: int) -> bytes:
    return b"".join(b"J" + struct.pack("<i", value) for value in values)


def probed_in_turn(count: int) -> list[int]:
    """Numbers each of which Python's dictionary of 2**17 slots tries after the one before."""
    slots = [1]
    for _ in range(count):
        slots.append((5 * slots[-1] + 1) % 2**17)
    return [2**17 + 1, *slots[1:], 1]  # so 1 finds all of them taken


def many_times(value: bytes, count: int) -> bytes:
    """A dictionary of good tensors, with one value in a list so often."""
    tensor = TENSOR.removeprefix(b"}(").removesuffix(b"u")
    return program(b"}(", tensor, text("v"), value, b"q\0", text("vs"), b"](", b"h\0" * count, b"eu")


# Made when a test uses them: some are tens of megabytes.
BOMBS: dict[str, Callable[[], bytes]] = {
    "tuple doubled 60 times": lambda: program(text("lol"), b"q\0" + b"0h\0h\0\x86q\0" * 60),
    "list doubled 60 times": lambda: program(b"]q\0" + b"0](h\0h\0eq\0" * 60),
    "list doubled 60 times, shown": lambda: many_times(b"]q\0" + b"0](h\0h\0eq\0" * 60, 1),
    "doubled tuple as a key": lambda: program(b"})q\0" + b"0h\0h\0\x86q\0" * 60 + b"K\1s"),
    "tuples nested deep": lambda: program(b")", b"\x85" * 200_000),
    "lists nested deep": lambda: program(b"]" * 200_000, b"a" * 199_999),
    "lists nested deep, shown": lambda: many_times(b"]" * 50_000 + b"a" * 49_999, 1),
    "calls nested deep": lambda: program(SYSTEM, b")R" * 100_000),
    "arguments nested deep": lambda: program(SYSTEM, b"q\0)R", b"\x85q\1" + b"0h\0h\1R\x85q\1" * 30_000),
    "states nested deep": lambda: program(CALL, b"q\0" + b"0" + SYSTEM + b")Rh\0bq\0" * 1),
    "deep tuple as a key": lambda: program(b"})", b"\x85" * 200_000, b"K\1s"),
    "state_dict nested deep": lambda: program((b"}" + text("state_dict")) * 20_000, b"}", b"s" * 20_000),
    "tensors nested deep": lambda: program((b"}" + text("x")) * 20_000, TENSOR, b"s" * 20_000),
    "marks without end": lambda: program(b"(" * 3_000_000),
    "encode over and over": lambda: program(
        name("_codecs", "encode"), b"q\0", text("x" * 1_000_000), text("latin1"),
        b"\x86q\1" + b"0h\0h\1R" * 20_000,
    ),
    "sets copied over and over": lambda: program(
        name("builtins", "set"), b"q\0](", b"".join(b"M" + struct.pack("<H", n) for n in range(50_000)),
        b"e\x85q\1" + b"0h\0h\1R" * 20_000,
    ),
    "integers that collide": lambda: program(b"}(", colliding_integers(100_000), b"u"),
    "long names over and over": lambda: program(
        text("m" * 1_000_000), b"q\0", text("n" * 1_000_000),
        b"q\1\x93" + b"0h\0h\1\x93" * 200_000, protocol=4,
    ),
    "array made 50,000 times": lambda: program(
        name("numpy.core.multiarray", "_reconstruct"), b"q\0",
        b"(K\1" + group(b"J", struct.pack("<i", 1_000_000)), name("numpy", "dtype"),
        group(text("u1"), b"\x89\x88"), b"R" + group(b"K\3", text("|"), b"N") + b"b",
        b"\x89" + text("x" * 1_000_000) + b"tq\1",
        b"}(" + b"".join(text(f"a{n}") + b"h\0)Rh\1b" for n in range(50_000)) + b"u",
    ),
    "long list 50,000 times": lambda: many_times(b"](" + b"K\1" * 20_000 + b"e", 50_000),
    "long text 50,000 times": lambda: many_times(text("x" * 1_000_000), 50_000),
    "dict 50,000 times": lambda: many_times(
        b"}(" + b"".join(text(f"k{n}") + b"K\1" for n in range(5_000)) + b"u", 50_000
    ),
    "numpy text 50,000 times": lambda: many_times(
        name("numpy.core.multiarray", "scalar") + b"("
        + name("numpy", "dtype") + group(text("U99999"), b"\x89\x88") + b"R"
        + group(b"K\3", text("<"), b"N") + b"b" + text("x" * 399_996) + b"tR", 50_000,
    ),
    "long arguments with keywords": lambda: program(
        SYSTEM, b"q\0" + b"0", group(b"K\1" * 150_000), b"q\1" + b"0}" + text("k") + b"K\1sq\2" + b"0](",
        b"h\0h\1h\2\x92" * 24_000, b"e", protocol=4,
    ),
    "arrays of a wrong shape": lambda: numpy_arrays(group(b"K\7"), text("x" * 10_000_000)),
    "arrays of an endless shape": lambda: numpy_arrays(group(b"K\1" * 300_000), text("x"), b"\x88"),
    "arrays of no bytes": lambda: numpy_arrays(group(numbers(3_000_001)), text("x" * 3_000_000 + "\u1234")),
    "long keys that are equal": lambda: program(
        text("k" * 4_000_000) + b"q\0", text("k" * 4_000_000) + b"q\1}h\0Ns", b"h\1Ns" * 200_000
    ),
    "long keys, shown": lambda: many_times(b"}" + text("k" * 1_000_000) + b"Ns", 90_000),
    "long tuples as keys": lambda: program(
        text("\U000e0000" * 256), b"q\0(" + b"h\0" * 16 + b"tq\1](", b"}h\1Ns" * 150_000, b"e"
    ),
    "key that meets all others": lambda: program(
        b"}", b"".join(numbers(n) + b"Ns" for n in probed_in_turn(80_000)), (numbers(1) + b"Ns") * 200_000
    ),
    "memo that meets all others": lambda: program(
        b"N", b"".join(b"r" + struct.pack("<I", n) for n in probed_in_turn(80_000)),
        (b"j" + struct.pack("<I", 1)) * 200_000,
    ),
    "memo of integers that collide": lambda: program(
        b"N", b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 40_000))
    ),
    "many arguments": lambda: program(
        name("collections", "OrderedDict"), b"q\0" + b"0(" + b")" * 200_000 + b"tq\1](",
        b"h\0h\1R" * 200_000 + b"e",
    ),
    "tensor of 64 dimensions": lambda: program(
        name("torch._utils", "_rebuild_tensor_v2"), b"q\0", group(
            group(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\4") + b"Q",
            b"K\0", group(b"K\1" * 64), group(b"K\1" * 64), b"\x89}"
        ), b"q\1](" + b"h\0h\1R" * 300_000 + b"e",
    ),
    "endless list as an encoding": lambda: program(
        name("_codecs", "encode"), text("x"), b"]q\0" + b"0](h\0h\0eq\0" * 60 + b"\x86R"
    ),
    "long storage keys that are equal": lambda: program(
        *(group(text("storage"), name("torch", "FloatStorage"), text("0" * 5_000_000), text("cpu"), b"K\4")
          + b"q" + bytes([n]) for n in (0, 1)), b"h\0Q", b"h\1Q" * 200_000,
    ),
    "names of all pairs": lambda: program(
        *(text("\1" * 97 + f"{n:03}") + b"q" + bytes([n]) for n in range(250)),
        *(b"h" + bytes([n]) + b"h" + bytes([m]) + b"\x93" for n in range(250) for m in range(250)),
        protocol=4,
    ),
    "state_dict within itself": lambda: program(
        b"}q\0(" + text("state_dict") + b"h\0", TENSOR.removeprefix(b"}(").removesuffix(b"u"),
        *(text(f"{n:x}") + b"N" for n in range(200_000)), b"u",
    ),
    "long names of tensors": lambda: program(
        b"}" + text("p" * 4_000), TENSOR.removesuffix(b"u"), b"q\0",
        *(text(f"{n:x}") + b"h\0" for n in range(200_000)), b"us",
    ),
    "sets": lambda: program(b"(" + b"\x8f" * 990_000 + b"t", protocol=4),
}  # fmt: skip
