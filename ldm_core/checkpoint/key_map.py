"""Key maps: how the tensors of a file become the parameters of the networks, and back.

A map is a fully expanded table {file key: Entry}. An entry names the parameters that one file tensor
holds and the invertible change of shape between them. The way back is derived from the same table, so
the two cannot disagree. Whatever is left over or missing is an error that names the keys.

The table comes from a template: pairs of a pattern of our parameters' names and of the file's keys. `expand`
applies it to the names that a network's own parameters have, so that no template repeats which of the
blocks has a shortcut or attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.errors import CheckpointError
from ldm_core.support.printable import printable

NAMES_SHOWN = 8


@dataclass(frozen=True)
class Transform:
    """An invertible change between one file tensor and the parameters that it holds."""

    name: str
    load: Callable[[Tensor], tuple[Tensor, ...]]
    save: Callable[[tuple[Tensor, ...]], Tensor]


SAME = Transform("same", lambda x: (x,), lambda xs: xs[0])

# (O, I, 1, 1) in the file, (O, I) in the network: a 1x1 convolution is a linear layer over pixels. Some
# converters leave the network's form in the file.
CONV_1X1 = Transform("conv 1x1 <-> linear", lambda x: (_squeeze(x),), lambda xs: xs[0][:, :, None, None])

# (3 * O, …) in the file, three of (O, …) in the network: queries, keys and values stored as one.
FUSED_QKV = Transform("fused qkv <-> split", lambda x: _thirds(x), lambda xs: torch.cat(xs))

# (O, I) in the file, (I, O) in the network: OpenAI's CLIP multiplies by its projections from the right.
TRANSPOSED = Transform("transposed", lambda x: (_transpose(x),), lambda xs: xs[0].T)


def _squeeze(x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError(f"expected a 1x1 convolution (O, I, 1, 1), got {tuple(x.shape)}")
    return x[:, :, 0, 0]


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
    """What one tensor of a file is: the parameters in it, and the transform that takes them out."""

    parameters: tuple[str, ...]
    transform: Transform = SAME


KeyMap = dict[str, Entry]


def prefixed(key_map: KeyMap, file_prefix: str, parameter_prefix: str) -> KeyMap:
    """The map with a prefix before every file key and every parameter name."""
    return {
        file_prefix + key: Entry(tuple(parameter_prefix + p for p in entry.parameters), entry.transform)
        for key, entry in key_map.items()
    }


# A row's right side: the name in the file; that and the transform; or None for what such files do not hold.
There = str | tuple[str, Transform] | None
Template = Mapping[str, There]


def same(*names: str) -> dict[str, There]:
    """Rows for what has one name in both places."""
    return {name: name for name in names}


def within(here: str, there: str, rows: Template) -> dict[str, There]:
    """The rows of a module's inside behind the prefixes of the module: `within("mid.res1.", …, RES)`."""
    template: dict[str, There] = {}
    for inner, row in rows.items():
        name, transform = row if isinstance(row, tuple) else (row, SAME)
        template[here + inner] = None if name is None else (there + name, transform)
    return template


def expand(
    template: Template, parameters: Iterable[str], numbers: Callable[..., Mapping[str, int]] = dict
) -> KeyMap:
    """The map of a network, from a template and the names of the network's parameters.

    A row is a pair of names, (here, in the file), such as `blocks.{i}.norm1` and
    `encoder.layers.{i}.layer_norm1`. It is about one parameter or, without the last word, about a module's
    weight and bias, of which its transform changes the weight only. Where the file counts otherwise,
    `numbers` gives the numbers of the right side from those of the left, `numbers(i=3) -> {"n": 7}`.
    Parameters that a file keeps in one tensor have one name there, and lie in it in the network's order.
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
    """The parameters that `tensors` hold, by name, as views wherever the transform allows it.

    `shapes` are the shapes that the networks want. Raises CheckpointError, naming `source`, the keys that
    are missing and those whose shape is wrong.
    """
    parameters, problems = matched(key_map, tensors, shapes)
    report(source, problems)
    return parameters


Problems = dict[str, list[str]]  # the names of tensors, by what is wrong with them


def matched(
    key_map: KeyMap, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], Problems]:
    """`to_parameters` as far as it goes, and what `report` would complain of."""
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
    """The shape that the file's tensor should have had."""
    blanks = tuple(torch.empty(shapes[name], device="meta") for name in entry.parameters)
    return tuple(entry.transform.save(blanks).shape)


def to_file(key_map: KeyMap, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_parameters`: the tensors that a file of this layout holds."""
    return {
        key: entry.transform.save(tuple(parameters[name] for name in entry.parameters))
        for key, entry in key_map.items()
    }


def some(names: Sequence[str], shown: int = 3) -> str:
    """How many tensors, and the first few names."""
    listed = ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}" + (f" ({listed})" if names else "")


def report(source: str, problems: Mapping[str, Iterable[str]]) -> None:
    """Raise one CheckpointError that lists every group of problems, some names of each; or do nothing."""
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
