"""Checking the output folder of a job: what is missing, doubled or damaged, and whether pictures come again.

Nothing but the folder is needed: job.json has the number of rows and the SHA-256 of all ids in their order.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm_core.images import open_picture, to_rgb
from ldm_core.jobs.draw import Draw
from ldm_core.jobs.job import read_record
from ldm_core.jobs.plan import Plan, read_plan, shard_name
from ldm_core.jobs.rows import Row, parse_row
from ldm_core.jobs.shards import FORMATS
from ldm_core.jobs.sources import Rows
from ldm_core.recipe.fields import from_json, to_json, without_paths
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import shown, shown_error

MAX_PROBLEMS = 100  # that are described
# Levels of 255 by which a pixel may differ. Other batches and other threads round differently.
TOLERANCE, HALF_TOLERANCE = 2, 32


@dataclass
class Report:
    """What a check found. drawn, failed: rows. redrawn: pictures drawn again; difference: of their pixels, at
    most, in levels of 255. problems: at most MAX_PROBLEMS, with the number of all in `count`.
    """

    rows: int
    drawn: int = 0
    failed: int = 0
    redrawn: int = 0
    difference: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def note_failed(self, row: dict[str, Any]) -> None:
        self.failed += 1
        if len(self.reasons) < MAX_PROBLEMS:
            self.reasons.append(f"row {shown(row['id'])} failed: {row['error']}")


def verify(
    output: str | os.PathLike[str],
    *,
    redraw: int = 0,
    draw: Draw | None = None,
    rows: Rows | None = None,
    tolerance: int | None = None,
    seed: int | None = None,
) -> Report:
    """Check all shards of a job: their files, checksums, rows and ids.

    redraw: how many random pictures to draw again, with `draw`, from their recipes.
    rows: the rows of the job, for pictures that were drawn from pictures.
    tolerance: the largest difference of a pixel, in levels of 255; None: 2 in float32, 32 in other types.
    seed: of the choice of pictures; None: another choice every time.

    Raises ValueError or OSError for a folder without a job, and for a `draw` with another model or options.
    """
    output = Path(output)
    plan = read_plan(output)
    report, choice = Report(plan.scan.count), _Choice(redraw, random.Random(seed))
    if draw is not None:
        _require_same(plan, draw)
    digest, short, missing = hashlib.sha256(), bytearray(), False  # 64 bits of each id's hash
    for number in range(plan.shards):
        found = _checked_shard(output, plan, number, report)
        missing = missing or found is None
        for row in found or ():
            digest.update(row["id"].encode() + b"\n")
            short += hashlib.blake2b(row["id"].encode(), digest_size=8).digest()
            if "error" in row:
                report.note_failed(row)
            else:
                report.drawn += 1
                choice.offer((number, row["id"]))
    hashes = np.frombuffer(bytes(short), np.uint64)
    doubled = len(hashes) - len(np.unique(hashes))
    if doubled:
        report.add(f"{doubled} ids are doubled")
    elif not missing and digest.hexdigest() != plan.scan.ids:
        report.add("the ids of the shards are not those of the rows")
    for name in _others(output, plan):
        report.add(f"{name} is not a shard of this job")
    if redraw and draw is not None:
        for number, row_id in sorted(choice.chosen):
            _redraw(output, plan, number, row_id, draw, rows, tolerance, report)
    return report


def _checked_shard(output: Path, plan: Plan, number: int, report: Report) -> list[dict[str, Any]] | None:
    """The rows of a shard; None, with a problem in the report, if it is not whole."""
    path, numbers = plan.path_of(output, number), plan.rows_of(number)
    where = f"{shard_name(number)} (rows {numbers.start + 1} to {numbers.stop})"
    rows = read_record(output, plan, number)
    if rows is None:
        state = "is not whole" if path.exists() else "is missing"
        report.add(f"{where} {state}")
        return None
    try:
        found = _contents(plan, path)
    except Exception as error:  # whatever a reader of tar or parquet files raises
        report.add(f"{where} cannot be read: {shown_error(error)}")
        return None
    wanted = sorted((row["id"], row.get("sha256", "")) for row in rows)
    if sorted(found) != wanted:
        report.add(f"{where} has other pictures than its JSON lists")
        return None
    return rows


def _contents(plan: Plan, path: Path) -> list[tuple[str, str]]:
    """The id of each row in a shard, and the SHA-256 of its picture or ""."""
    ids: dict[str, str] = {}
    sums: dict[str, str] = {}
    for key, png, record in FORMATS[plan.format].read(path):
        if record is not None:
            if key in ids:
                raise ValueError(f"{shown(key)} is doubled")
            ids[key] = parse_json(record, "a record")["id"]
        if png is not None:
            sums[key] = hashlib.sha256(png).hexdigest()
    if not set(sums) <= set(ids):
        raise ValueError("a picture has no record")
    return [(name, sums.get(key, "")) for key, name in ids.items()]


def _others(output: Path, plan: Plan) -> Iterator[str]:
    """Names of shards that the job does not have."""
    for name in sorted(os.listdir(output)):
        match = re.fullmatch(r"shard-(\d{1,12})(\..*)?", name)
        if match and (
            int(match[1]) >= plan.shards or match[2] not in (".json", FORMATS[plan.format].ending or None)
        ):
            yield name


class _Choice:
    """A random choice of `size` rows from a stream (Vitter's algorithm R)."""

    def __init__(self, size: int, source: random.Random) -> None:
        self.size, self.source, self.seen = size, source, 0
        self.chosen: list[tuple[int, str]] = []

    def offer(self, row: tuple[int, str]) -> None:
        self.seen += 1
        if len(self.chosen) < self.size:
            self.chosen.append(row)
        elif (place := self.source.randrange(self.seen)) < self.size:
            self.chosen[place] = row


def _require_same(plan: Plan, draw: Draw) -> None:
    there, here = plan.recipe, without_paths(draw.template)
    if not there.model.same_as(here.model) and there.model != here.model:
        raise ValueError(
            f"expected the model {shown(there.model.name)} (sha256 {there.model.short_hash}…), got "
            f"{shown(here.model.name)} ({here.model.short_hash}…)"
        )


def _redraw(
    output: Path,
    plan: Plan,
    number: int,
    row_id: str,
    draw: Draw,
    rows: Rows | None,
    tolerance: int | None,
    report: Report,
) -> None:
    """Draw a picture again, alone, and compare it and its recipe."""
    png, record = _row_in(plan, plan.path_of(output, number), row_id)
    text = json.dumps(parse_json(record, "a record")["recipe"])
    recorded = from_json(text)
    row = _row_again(plan, number, row_id, text, rows, draw)
    (again,) = draw([row])
    what = f"{shard_name(number)}: the picture of row {shown(row_id)}"
    if again.image is None or again.recipe is None:
        report.add(f"{what} could not be drawn again: {again.error}")
        return
    elsewhere = replace(again.recipe, device=recorded.device, versions=recorded.versions)
    if to_json(elsewhere) != text:
        report.add(f"{what} has another recipe when it is drawn again")
    before = np.asarray(to_rgb(open_picture(png))).astype(int)
    after = np.asarray(again.image).astype(int)
    difference = int(abs(before - after).max()) if before.shape == after.shape else 255
    report.redrawn += 1
    report.difference = max(report.difference, difference)
    if tolerance is None:
        tolerance = TOLERANCE if plan.recipe.dtype == "float32" else HALF_TOLERANCE
    if difference > tolerance:
        report.add(f"{what} differs by {difference} of 255 levels when it is drawn again")


def _row_in(plan: Plan, path: Path, row_id: str) -> tuple[bytes, str]:
    """The PNG file and the JSON of a row."""
    pngs: dict[str, bytes] = {}
    for key, png, record in FORMATS[plan.format].read(path):
        if png is not None:
            pngs = {key: png}  # which is followed by its record
        if record is not None and parse_json(record, "a record")["id"] == row_id:
            if key not in pngs:
                break
            return pngs[key], record
    raise ValueError(f"{path}: no picture of row {shown(row_id)}")


def _row_again(plan: Plan, number: int, row_id: str, text: str, rows: Rows | None, draw: Draw) -> Row:
    """The row of a picture: from the rows of the job, or else from its recipe."""
    if rows is not None:
        numbers = plan.rows_of(number)
        for values in rows.read(numbers.start, len(numbers), plan.place_of(number)):
            if values["id"] == row_id:
                return parse_row(row_id, values, draw.options.images)
        raise ValueError(f"{rows.source.path} has no row {shown(row_id)} where the job has it")
    recipe = from_json(text)
    if recipe.image is not None:
        raise ValueError("these pictures were drawn from pictures; drawing them again needs the rows")
    takes = draw.kind.takes
    texts: dict[str, Any] = {"prompt": recipe.prompt, "negative_prompt": recipe.negative_prompt or None}
    return Row(
        row_id,
        **{name: value for name, value in texts.items() if name in takes},
        class_label=recipe.class_label,
        layout=recipe.layout,
        seed=recipe.seed,
        steps=recipe.steps,
        width=recipe.width,
        height=recipe.height,
        guidance_scale=recipe.guidance_scale,
    )
