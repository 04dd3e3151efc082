"""Reads a pickle without executing its code.

A pickle is a program for a stack machine. This module implements that machine. Instructions that refer to
classes and functions (GLOBAL, REDUCE, BUILD …) use the table in `pickle_globals` only; any other name becomes
an `InertObject`. In contrast to a subclass of `pickle.Unpickler`, no dangerous default has to be overridden:
no instruction imports a module or looks up an attribute, only functions of the table are called, and nested
values need no recursion. All work is charged to a budget (`work_budget`), so a small file cannot take a long
time. The reader executes about a million instructions per second; a Stable Diffusion checkpoint has about
50,000.

The standard library's `pickletools.genops` decodes the instructions. It only reads.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ldm_core.checkpoint.pickle_globals import KNOWN, KNOWN_RECORDS, KnownFunction, checked_key
from ldm_core.checkpoint.pickle_values import InertObject, StorageRef, StorageType, StoredTensor
from ldm_core.checkpoint.work_budget import CONTAINER, INSTRUCTION, ITEM, Budget
from ldm_core.errors import CheckpointError
from ldm_core.support.printable import few, printable

MAX_PICKLE_BYTES = 2**26
MAX_LINE = 2**16
MAX_FOREIGN = 1000  # a training checkpoint has about ten
MAX_NAME = 100  # characters kept of the name of a module or class

_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
     "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NO_EFFECT = frozenset(("PROTO", "FRAME"))


class PickleStream(io.BytesIO):
    """A stream of pickles. Reading a pickle moves the position to its end."""

    def readline(self, size: int | None = -1, /) -> bytes:
        # Old versions of Python take minutes to convert an integer of a million digits.
        return super().readline(MAX_LINE)


class PickleReader:
    """A reader for one pickle.

    budget     the budget that `load` charges
    foreign    after `load`: dotted names of classes and functions outside of the table, in order
    storages   after `load`: the storages of the pickle's tensors, by key
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.foreign: list[str] = []
        self.storages: dict[str, StorageRef] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []  # the stack's height at each open MARK
        # The keys are text, since a file could choose numbers whose hashes collide.
        self._memo: dict[str, Any] = {}
        self._records: dict[str, InertObject] = {}

    def load(self, stream: PickleStream) -> Any:
        """The pickle's value, made of plain containers, `StoredTensor`s and `InertObject`s.

        The stream's position is then the end of the pickle. Raises CheckpointError for a damaged pickle.
        """
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._budget.spend(INSTRUCTION)
                self._execute(opcode.name, argument)
        except CheckpointError:
            raise
        # The errors of genops and of the operations below for invalid instructions.
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError, Warning) as error:
            raise CheckpointError(f"the pickle is damaged or truncated ({str(error)[:120]})") from error
        if len(self._stack) != 1:
            raise CheckpointError("the pickle is damaged: it does not end with one value")
        return self._stack.pop()

    def suspects(self) -> str:
        """The end of an error message: the names in the pickle that are not in the table."""
        if not self.foreign:
            return ""
        return f" (the pickle names {few(self.foreign)}, which was not imported or executed)"

    @contextmanager
    def naming_suspects(self) -> Iterator[None]:
        """Append `suspects` to every CheckpointError."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{error}{self.suspects()}") from error

    def _execute(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._budget.spend(CONTAINER)
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLE_SIZES:
            self._stack.append(tuple(reversed([self._pop() for _ in range(_TUPLE_SIZES[name])])))
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name == "STOP":
            if self._marks:
                raise CheckpointError("the pickle is damaged: a group of values is not closed")
        elif name not in _NO_EFFECT:
            raise CheckpointError(f"the pickle uses the instruction {name}, which no checkpoint needs")

    # The stack and the memo

    def _pop(self) -> Any:
        if self._marks and len(self._stack) == self._marks[-1]:
            raise CheckpointError("the pickle is damaged: it pops a value beyond a mark")
        return self._stack.pop()

    def _pop_group(self) -> list[Any]:
        start = self._marks.pop()
        group = self._stack[start:]
        del self._stack[start:]
        return group

    def _remember(self, index: Any) -> None:
        self._memo[str(index)] = self._stack[-1]

    def _discard(self, _: Any) -> None:
        if self._marks and len(self._stack) == self._marks[-1]:
            self._marks.pop()
        else:
            self._stack.pop()

    # Containers

    def _dict(self, _: Any) -> None:
        group = self._pop_group()
        self._stack.append({})
        self._set_items(group)

    def _frozenset(self, _: Any) -> None:
        group = self._pop_group()
        self._budget.spend(CONTAINER)
        self._stack.append(set())
        self._add_to_set(group)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, InertObject):
            if target.items is None:
                target.items = []
            target = target.items
        if not isinstance(target, list):
            raise CheckpointError(f"the pickle is damaged: it appends to a {type(target).__name__}")
        target.extend(items)

    def _add_to_set(self, group: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise CheckpointError(f"the pickle is damaged: it adds to a {type(target).__name__}")
        for item in group:
            target.add(checked_key(item, target, self._budget))

    def _setitem(self, _: Any) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _set_items(self, group: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, InertObject):
            if target.entries is None:
                target.entries = {}
            target = target.entries
        if not isinstance(target, dict) or len(group) % 2:
            raise CheckpointError(f"the pickle is damaged: it sets items of a {type(target).__name__}")
        for key, value in zip(group[::2], group[1::2]):
            target[checked_key(key, target, self._budget)] = value

    # Names, calls and states, by which a pickle could execute code in other readers

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise CheckpointError("the pickle is damaged: the name of a class is not text")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Any:
        # Known names are shorter. Joining long names a million times would take hours.
        dotted = f"{module[:MAX_NAME]}.{name[:MAX_NAME]}"
        if dotted in KNOWN:
            return KNOWN[dotted]
        if dotted in KNOWN_RECORDS:
            return self._records.setdefault(dotted, InertObject(dotted))
        if dotted not in self._records:
            if len(self.foreign) == MAX_FOREIGN:
                raise CheckpointError(
                    f"the pickle names more than {MAX_FOREIGN:,} unknown classes and functions"
                )
            self._budget.spend(ITEM * len(dotted))  # `printable` checks every character
            self.foreign.append(printable(dotted))
            self._records[dotted] = InertObject(self.foreign[-1])
        return self._records[dotted]

    def _reduce(self, _: Any) -> None:
        args = self._pop()
        self._stack.append(self._call(self._pop(), args))

    def _newobj_ex(self, _: Any) -> None:
        keywords, args, function = self._pop(), self._pop(), self._pop()
        if keywords and isinstance(function, KnownFunction):
            raise CheckpointError(f"the pickle calls {function.name} with keywords")
        # Not (*args, keywords), which would copy a long tuple for each of a million calls.
        self._stack.append(self._call(function, (args, keywords) if keywords else args))

    def _inst(self, argument: Any) -> None:
        args = tuple(self._pop_group())
        self._stack.append(self._call(self._named(*argument.split(" ", 1)), args))

    def _obj(self, _: Any) -> None:
        function, *args = self._pop_group()
        self._stack.append(self._call(function, tuple(args)))

    def _call(self, function: Any, args: Any) -> Any:
        """Call a function of the table; describe any other call by an InertObject."""
        if not isinstance(args, tuple):
            raise CheckpointError("the pickle is damaged: the arguments of a call are not a tuple")
        if isinstance(function, KnownFunction):
            self._budget.spend(ITEM * len(args))
            return function.build(self._budget, *args)
        if isinstance(function, InertObject):
            # A call of a call's result, such as getattr(os, "system")("ls"), gets the inner call's name.
            name = function.name
            if function.args is not None and not name.endswith("()"):
                self._budget.spend(len(name))
                name += "()"
            return InertObject(name, args)
        raise CheckpointError(f"the pickle is damaged: it calls a {type(function).__name__}")

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, InertObject):
            target.state = state
        # The _metadata of a state dict and the attributes of a tensor are ignored.
        elif not isinstance(target, dict | set | StoredTensor):
            raise CheckpointError(f"the pickle is damaged: it sets the state of a {type(target).__name__}")

    def _persistent(self, _: Any) -> None:
        """torch.save's persistent ids: ("storage", type, key, location, numel), or a module's class."""
        identity = self._pop()
        match identity:
            case ("module", InertObject() as record, *_):
                self._stack.append(record)
                return
            case ("storage", StorageType(dtype=dtype), str(key), _, int(numel)) if 0 <= numel < 2**63:
                pass
            case ("storage", StorageType(dtype=dtype), str(key), _, int(numel), None) if 0 <= numel < 2**63:
                pass
            case ("storage", InertObject(name=name), *_):
                raise CheckpointError(f"the file has a storage of type {name}, which is not supported")
            case _:
                raise CheckpointError("the pickle has an unknown kind of persistent id")
        self._budget.spend(len(key))
        storage = StorageRef(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"the pickle has two different descriptions of the storage {key[:80]!a}")
        self._stack.append(storage)


# What each instruction does with the reader and the instruction's argument.
_HANDLERS: dict[str, Callable[[PickleReader, Any], object]] = {
    "MARK": lambda r, _: r._marks.append(len(r._stack)),
    "POP": PickleReader._discard,
    "POP_MARK": lambda r, _: r._pop_group(),
    "DUP": lambda r, _: r._stack.append(r._stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda r, index: r._stack.append(r._memo[str(index)])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda r, index: r._remember(index)),
    "MEMOIZE": lambda r, _: r._remember(len(r._memo)),
    "TUPLE": lambda r, _: r._stack.append(tuple(r._pop_group())),
    "LIST": lambda r, _: r._stack.append(r._pop_group()),
    "DICT": PickleReader._dict,
    "FROZENSET": PickleReader._frozenset,
    "APPEND": lambda r, _: r._append([r._pop()]),
    "APPENDS": lambda r, _: r._append(r._pop_group()),
    "ADDITEMS": lambda r, _: r._add_to_set(r._pop_group()),
    "SETITEM": PickleReader._setitem,
    "SETITEMS": lambda r, _: r._set_items(r._pop_group()),
    "GLOBAL": lambda r, argument: r._stack.append(r._named(*argument.split(" ", 1))),
    "STACK_GLOBAL": PickleReader._stack_global,
    "REDUCE": PickleReader._reduce,
    "NEWOBJ": PickleReader._reduce,  # cls.__new__(cls, *args), which is handled like a call
    "NEWOBJ_EX": PickleReader._newobj_ex,
    "INST": PickleReader._inst,
    "OBJ": PickleReader._obj,
    "BUILD": PickleReader._build,
    "BINPERSID": PickleReader._persistent,
}
