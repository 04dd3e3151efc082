"""Key maps: convert the tensors of a file to the parameters of networks, and back.

A map is a fully expanded table {file key: Entry}. An entry names the parameters that one file tensor contains
and the invertible transform between them. The inverse is derived from the same table, so the two directions
always agree. Unused and missing tensors raise an error that names the keys.

The table comes from a template: pairs of a pattern of parameter names and a pattern of file keys. `expand`
applies it to the parameter names of a network, so that no template repeats which blocks have a shortcut or
attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ldm_core.errors import CheckpointError
from ldm_core.support.printable import printable

NAMES_SHOWN = 8


@dataclass(frozen=True)
class Transform:
    """An invertible transform between one file tensor and the parameters that it contains."""

    name: str
    load: Callable[[Tensor], tuple[Tensor, ...]]
    save: Callable[[tuple[Tensor, ...]], Tensor]


SAME = Transform("same", lambda x: (x,), lambda xs: xs[0])

# (O, I, 1, 1) or (O, I, 1) in the file, (O, I) in the network: a convolution of one pixel is a linear layer
# over pixels. Some converters store the linear layer.
CONV_1X1 = Transform("conv 1x1 <-> linear", lambda x: (_squeeze(x, 4),), lambda xs: xs[0][:, :, None, None])
CONV_1 = Transform("conv 1 <-> linear", lambda x: (_squeeze(x, 3),), lambda xs: xs[0][:, :, None])

# (3 * O, …) in the file, three of (O, …) in the network: queries, keys and values in one tensor.
FUSED_QKV = Transform("fused qkv <-> split", lambda x: _thirds(x), lambda xs: torch.cat(xs))

# (O, I) in the file, (I, O) in the network: OpenAI's CLIP multiplies by its projections from the right.
TRANSPOSED = Transform("transposed", lambda x: (_transpose(x),), lambda xs: xs[0].T)


@cache
def interleaved_qkv(heads: int | None, head_channels: int | None) -> Transform:
    """Queries, keys and values in one 1-d convolution, head by head: q, k, v of head 0, of head 1, …

    (3 * O, I, 1) or, for a bias, (3 * O,) in the file, three of (O, I) or (O,) in the network. The shapes do
    not contain the order: exactly one of the number of heads and the size of a head must be given.
    """
    of_one = heads or head_channels or 1
    blocks = (heads or -1, 3, head_channels or -1)

    def load(x: Tensor) -> tuple[Tensor, ...]:
        x = x if x.ndim == 1 else _squeeze(x, 3)
        if not len(x) or len(x) % (3 * of_one):
            raise ValueError(f"expected a multiple of {3 * of_one} rows, got {tuple(x.shape)}")
        return tuple(part.flatten(0, 1) for part in x.unflatten(0, blocks).unbind(1))

    def save(xs: tuple[Tensor, ...]) -> Tensor:
        x = torch.stack([x.unflatten(0, (blocks[0], blocks[2])) for x in xs], dim=1).flatten(0, 2)
        return x if x.ndim == 1 else x[:, :, None]

    return Transform("qkv by head <-> split", load, save)


def _squeeze(x: Tensor, ndim: int) -> Tensor:
    if x.ndim == 2:
        return x
    ones = (1,) * (ndim - 2)
    if x.ndim != ndim or x.shape[2:] != ones:
        expected = ", ".join(("O", "I", *map(str, ones)))
        raise ValueError(f"expected a convolution of one pixel ({expected}), got {tuple(x.shape)}")
    return x.flatten(1)


def _transpose(x: Tensor) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"expected a matrix (O, I), got {tuple(x.shape)}")
    return x.T.contiguous()


def _thirds(x: Tensor) -> tuple[Tensor, ...]:
    if x.ndim == 0 or x.shape[0] % 3:
        raise ValueError(f"expected queries, keys and values stacked (3 * O, …), got {tuple(x.shape)}")
    return x.chunk(3)


@dataclass(frozen=True)
class Entry:
    """The parameters that one file tensor contains, and the transform between them."""

    parameters: tuple[str, ...]
    transform: Transform = SAME


KeyMap = dict[str, Entry]


def prefixed(key_map: KeyMap, file_prefix: str, parameter_prefix: str) -> KeyMap:
    """The map with a prefix before every file key and every parameter name."""
    return {
        file_prefix + key: Entry(tuple(parameter_prefix + p for p in entry.parameters), entry.transform)
        for key, entry in key_map.items()
    }


# The right side of a row: the name in the file, with a transform if needed; None if such files lack it.
There = str | tuple[str, Transform] | None
Template = Mapping[str, There]


def same(*names: str) -> dict[str, There]:
    """Rows for names that are the same in the file and the network."""
    return {name: name for name in names}


def within(here: str, there: str, rows: Template) -> dict[str, There]:
    """The rows of a module with its prefixes in front, as in `within("mid.res1.", …, RES)`."""
    template: dict[str, There] = {}
    for inner, row in rows.items():
        name, transform = row if isinstance(row, tuple) else (row, SAME)
        template[here + inner] = None if name is None else (there + name, transform)
    return template


def expand(
    template: Template, parameters: Iterable[str], numbers: Callable[..., Mapping[str, int]] = dict
) -> KeyMap:
    """The key map of a network, from a template and the names of its parameters.

    A row is a pair (name here, name in the file), such as `blocks.{i}.norm1` and
    `encoder.layers.{i}.layer_norm1`. It applies to a parameter, or to the weight and bias of a module; the
    transform of a module changes the weight only. If the file numbers blocks differently, `numbers` converts
    the numbers of the left side to those of the right: `numbers(i=3) -> {"n": 7}`. Parameters that share one
    file tensor have the same name there, and are stored in the network's order.
    """
    rows = {_BRACES.sub(".{}", here): (_BRACES.findall(here), there) for here, there in template.items()}
    key_map: KeyMap = {}
    for parameter in parameters:
        pattern, values = _NUMBER.sub(".{}", parameter), map(int, _NUMBER.findall(parameter))
        module, _, tensor = pattern.rpartition(".")
        whole = pattern in rows
        letters, there = rows[pattern if whole else module]
        if there is None:
            continue
        name, transform = there if isinstance(there, tuple) else (there, SAME)
        key = name.format_map(numbers(**dict(zip(letters, values, strict=True))))
        if not whole:
            key, transform = f"{key}.{tensor}", transform if tensor == "weight" else SAME
        together = key_map[key].parameters if key in key_map else ()
        key_map[key] = Entry((*together, parameter), transform)
    return key_map


_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
_BRACES = re.compile(r"\.\{(\w+)\}(?=\.|$)")


def to_parameters(
    key_map: KeyMap, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, source: str
) -> dict[str, Tensor]:
    """The parameters in `tensors`, by name, as views if the transform allows it.

    shapes: the shapes of the networks' parameters. Raises CheckpointError that names `source`, the missing
    keys, and the keys with the wrong shape.
    """
    parameters, problems = matched(key_map, tensors, shapes)
    report(source, problems)
    return parameters


Problems = dict[str, list[str]]  # the names of tensors, by what is wrong with them


def matched(
    key_map: KeyMap, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], Problems]:
    """(the parameters that fit, the problems for `report`); like `to_parameters` without raising."""
    missing = [key for key in key_map if key not in tensors]
    parameters: dict[str, Tensor] = {}
    wrong = []
    for key, entry in key_map.items():
        if key not in tensors:
            continue
        if not tensors[key].is_floating_point() and tensors[key].ndim > 0:
            wrong.append(f"{key}: expected real numbers, got {tensors[key].dtype}")
            continue
        try:
            values = entry.transform.load(tensors[key])
        except ValueError as error:
            wrong.append(f"{key}: {error}")
            continue
        for name, value in zip(entry.parameters, values, strict=True):
            if value.shape != shapes[name]:
                wrong.append(f"{key}: expected {_wanted(entry, shapes)}, got {tuple(tensors[key].shape)}")
                break
            parameters[name] = value
    return parameters, {"missing": missing, "of the wrong shape or type": wrong}


def _wanted(entry: Entry, shapes: Mapping[str, torch.Size]) -> tuple[int, ...]:
    """The expected shape of a file tensor."""
    blanks = tuple(torch.empty(shapes[name], device="meta") for name in entry.parameters)
    return tuple(entry.transform.save(blanks).shape)


def to_file(key_map: KeyMap, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_parameters`: the tensors of a file with this layout."""
    return {
        key: entry.transform.save(tuple(parameters[name] for name in entry.parameters))
        for key, entry in key_map.items()
    }


def some(names: Sequence[str], shown: int = 3) -> str:
    """The number of tensors and the first few names, as text."""
    listed = ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}" + (f" ({listed})" if names else "")


def report(source: str, problems: Mapping[str, Iterable[str]]) -> None:
    """Raise a CheckpointError that lists each kind of problem with some names, if there are any."""
    lines = []
    for kind, names in problems.items():
        names = list(names)
        if names:
            lines.append(f"{len(names)} tensor(s) {kind}:")
            lines += [f"    {printable(name)}" for name in names[:NAMES_SHOWN]]
            if len(names) > NAMES_SHOWN:
                lines.append(f"    … and {len(names) - NAMES_SHOWN} more")
    if lines:
        raise CheckpointError("\n".join([f"{source} does not fit the model:", *lines]))
