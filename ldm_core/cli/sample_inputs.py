"""What pictures of `sample` and `upscale` are drawn from: the given options, checked against the model."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldm_core.cli.inputs import Subject, open_rgb
from ldm_core.cli.kinds import joined, kind_of, require_inputs
from ldm_core.cli.model import chosen
from ldm_core.cli.recipe_files import option_of, recorded_path
from ldm_core.cli.sample_files import read_embeddings, read_layout, read_names, read_values
from ldm_core.conditioners import Instruction, Layout
from ldm_core.conditioners.instruction import fitted
from ldm_core.conditioners.layout import class_numbers
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import Recipe, source_file
from ldm_core.support.printable import shown

FIELDS = {"layout": "boxes"}  # of conditioners, which have other names than the options
Value = tuple[Any, dict[str, Any]]  # as the conditioner takes it, and the fields of a recipe that record it


@dataclass(frozen=True)
class SampleInputs:
    """The options for what to draw, opened. Each has one value for all pictures, or one for each."""

    command: str
    values: dict[str, list[Value]]  # by option, without those that are not given
    names: Sequence[str] | Mapping[str, int] | None
    class_count: int | None

    @property
    def count(self) -> int:
        """The number of different inputs. Raises ValueError if the options have different numbers."""
        count = max(map(len, self.values.values()), default=1)
        for option, values in self.values.items():
            if len(values) not in (1, count):
                raise ValueError(f"expected 1 or {count} of --{option}, as of others, got {len(values)}")
        return count

    def subjects(self, model: LatentDiffusion) -> list[Subject]:
        """The inputs of the pictures. The model's conditioner gets to know the names of classes.

        Raises ValueError if the model does not take these inputs, or needs others.
        """
        takes = kind_of(model.conditioner).takes
        given = [
            name
            for name, values in self.values.items()
            if name in takes or any(not isinstance(one, str) or one for one, _ in values)
        ]  # a recipe has an empty prompt
        given = given if self.names is None else [*given, "names"]
        require_inputs(model.conditioner, self.command, given)
        if self.names is not None:
            of_layouts = {"classes": self.class_count} if isinstance(model.conditioner, Layout) else {}
            model.conditioner = replace(model.conditioner, names=self.names, **of_layouts)  # type: ignore[type-var]
        fitting = self._fitted(model) if isinstance(model.conditioner, Instruction) else self
        return [fitting._subject(k, model.conditioner) for k in range(self.count)]

    def _fitted(self, model: LatentDiffusion) -> SampleInputs:
        """The inputs with pictures of a size that a model for editing takes."""
        size, unit = model.config.image_size, model.config.size_multiple
        pictures = [(fitted(image, size, unit), record) for image, record in self.values["image"]]
        return replace(self, values={**self.values, "image": pictures})

    def _subject(self, k: int, conditioner: Any) -> Subject:
        kind = kind_of(conditioner)
        row: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        for option, values in self.values.items():
            row[option], record = values[k % len(values)]
            fields |= record
        if kind.noise_level is not None:
            row["noise-level"] = fields["noise_level"] = row.get("noise-level", kind.noise_level)
        named = self._names_in(row, conditioner)
        if kind.fields:
            inputs: Any = {FIELDS.get(name, _field(name)): row[name] for name in kind.inputs if name in row}
            conditioner.count([inputs], "the inputs")
        elif kind.needs:
            inputs = row[kind.needs[0]]
            conditioner.count(joined([inputs])[0], f"--{kind.needs[0]}")
        else:
            inputs = None
        if named:
            fields["class_names"] = {name: _number(conditioner, name) for name in named}
        return Subject(inputs, fields)

    def _names_in(self, row: Mapping[str, Any], conditioner: Any) -> list[str]:
        """The names of classes in the inputs. Raises ValueError if they cannot be known."""
        if "names" not in kind_of(conditioner).takes:
            return []
        labels = [row["class"]] if "class" in row else [one["label"] for one in row.get("layout", ())]
        named = [label for label in labels if isinstance(label, str)]
        if named and getattr(conditioner, "names", None) is None:
            raise ValueError(
                f"the class {shown(named[0])} needs --names FILE, the names of all classes, one per line"
            )
        return named


def _field(option: str) -> str:
    return option.replace("-", "_")


def _number(conditioner: Any, name: str) -> int:
    if isinstance(conditioner, Layout):
        return class_numbers(conditioner.names)[name]
    return int(conditioner.labels(name)[0])


def open_sample_inputs(args: Namespace, again: Recipe | None) -> SampleInputs:
    """The inputs on the command line, and those of the recipe that the command line lacks.

    Raises ValueError or OSError for a file that cannot be read.
    """
    texts = {
        "prompt": args.prompt or ([again.prompt] if again else []),
        "negative-prompt": args.negative_prompt or ([again.negative_prompt] if again else []),
    }
    values = {option: [(text, {_field(option): text}) for text in given] for option, given in texts.items()}
    values["class"] = [(label, {"class_label": label}) for label in _labels(args, again)]
    level = args.noise_level
    if level is None and again is not None:
        level = again.noise_level
    values["noise-level"] = [] if level is None else [(level, {"noise_level": level})]
    until = chosen(args, again, "until")
    values["until"] = [] if until is None else [(until, {"until": until})]
    names: Any = None if getattr(args, "names", None) is None else read_names(args.names)
    count = None if names is None else len(names)
    if names is None and again is not None:
        names, count = again.class_names or None, again.class_count
    values["layout"] = [
        (list(layout), {"layout": layout, "class_count": count}) for layout in _layouts(args, again)
    ]
    for field, read in (("image", open_rgb), ("map", read_values), ("depth", read_values)):
        path = _path(args, again, field)
        if path is not None:
            values[field] = [(read(path, f"--{field}"), {field: source_file(path)})]
    values["embeddings"] = _embeddings(args, again)
    return SampleInputs(args.command, {name: given for name, given in values.items() if given}, names, count)


def _labels(args: Namespace, again: Recipe | None) -> list[int | str]:
    given: list[str] | None = getattr(args, "classes", None)
    if given is not None:
        return [int(text) if re.fullmatch("[0-9]{1,9}", text) else text for text in given]
    return [] if again is None or again.class_label is None else [again.class_label]


def _layouts(args: Namespace, again: Recipe | None) -> list[tuple[dict[str, Any], ...]]:
    given: list[str] | None = getattr(args, "layouts", None)
    if given is not None:
        return [read_layout(path) for path in given]
    return [] if again is None or again.layout is None else [again.layout]


def _path(args: Namespace, again: Recipe | None, field: str) -> str | None:
    """The path of an input file, from the command line or else from the recipe."""
    given: str | None = getattr(args, field, None)
    recorded = getattr(again, field, None)
    if given is None and recorded is not None:
        return recorded_path(args.recipe, recorded, option_of(field))
    return given


def _embeddings(args: Namespace, again: Recipe | None) -> list[Value]:
    """The rows of the file of embeddings: all of them, or the one of the recipe."""
    path = _path(args, again, "clip_embeddings")
    if path is None:
        return []
    tensor, file = read_embeddings(path), source_file(path)
    recorded = again.embedding_row if again is not None else None
    if recorded is not None and recorded >= len(tensor):
        raise ValueError(f"{args.recipe}: expected row {recorded} in {path}, which has {len(tensor)} rows")
    rows = range(len(tensor)) if recorded is None else [recorded]
    return [(tensor[row], {"clip_embeddings": file, "embedding_row": row}) for row in rows]
