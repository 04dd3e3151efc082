"""What a job is: its rows, its settings and its shards, recorded in the output folder as job.json.

Two runs belong to one job if all of this is equal. Processes share nothing else: the first one in a new
folder writes job.json, and the others compare it with their own settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_core.jobs.draw import Draw
from ldm_core.jobs.inputs import require_columns
from ldm_core.jobs.shards import FORMATS
from ldm_core.jobs.sources import Place, Rows, Scan
from ldm_core.recipe.fields import Recipe, from_json, to_json, without_paths
from ldm_core.support.atomic_files import write_whole
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import is_whole
from ldm_core.support.printable import few, printable, shown
from ldm_core.support.regular_file import open_regular

SCHEMA = 1
JOB_FILE = "job.json"
MAX_JOB = 2**28  # bytes of job.json; a hundred million rows in shards of 256 have a tenth of this
SHARD_SIZE = 256
MAX_ROWS = 2**40


@dataclass(frozen=True)
class Plan:
    """The contents of job.json.

    settings: everything that decides what is drawn and where it is written, as JSON values.
    scan: of the rows.
    """

    settings: dict[str, Any]
    scan: Scan

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings, which the shards record."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def shard_size(self) -> int:
        return int(self.settings["shard_size"])

    @property
    def format(self) -> str:
        return str(self.settings["format"])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.scan.count // self.shard_size)

    @property
    def recipe(self) -> Recipe:
        """What the recipes of all pictures have in common, unless a row says otherwise."""
        return from_json(json.dumps(self.settings["recipe"]))

    def rows_of(self, shard: int) -> range:
        """The numbers of a shard's rows, from 0."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.scan.count))

    def place_of(self, shard: int) -> Place | None:
        return self.scan.places[shard]

    def path_of(self, output: Path, shard: int) -> Path:
        return output / f"{shard_name(shard)}{FORMATS[self.format].ending}"


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}"


def settings_of(rows: Rows, draw: Draw, format: str, shard_size: int) -> dict[str, Any]:
    """The settings of a job. Raises ValueError for rows that the model does not take."""
    if format not in FORMATS:
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, not {shown(format)}")
    if not is_whole(shard_size, 1, MAX_ROWS):
        raise ValueError(f"shard_size must be a positive whole number, not {shown(shard_size)}")
    require_columns(draw.kind, rows.names(), str(rows.source.path))
    options = draw.options
    return {
        "recipe": json.loads(to_json(without_paths(draw.template))),
        "rows": {"name": rows.file.name, "sha256": rows.file.sha256, "columns": dict(rows.columns)},
        "seed": options.seed,
        "strength": options.strength,
        "max_pixels": draw.max_pixels,
        "format": format,
        "shard_size": shard_size,
    }


def open_plan(output: Path, settings: dict[str, Any], rows: Rows) -> Plan:
    """The plan of the job in this folder, which is made if it is new.

    Raises ValueError for a folder of something else, and OSError if it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: expected a folder, got a file")
    output.mkdir(exist_ok=True)
    others = [name for name in os.listdir(output) if not name.startswith(".")]
    path = output / JOB_FILE
    if not path.exists():
        if others and not path.exists():  # another process may just have begun
            raise ValueError(
                f"{output} has other files ({printable(few(sorted(others), 3))}): expected a new or empty "
                "folder, or that of this job"
            )
        plan = Plan(settings, rows.scan(settings["shard_size"]))
        try:
            write_whole(path, lambda target: target.write_text(_to_json(plan)), overwrite=False)
            return plan
        except FileExistsError:  # another process was faster
            pass
    found = read_plan(output)
    _require_equal(output, found.settings, settings)
    return found


def read_plan(output: Path) -> Plan:
    """The plan in an output folder. Raises ValueError or OSError if there is none."""
    path = output / JOB_FILE
    if not path.exists():
        raise ValueError(f"{output} is not the output folder of a job: it has no {JOB_FILE}")
    with open_regular(path, MAX_JOB) as file:
        data = parse_json(file.read().decode(errors="replace"), str(path))
    try:
        plan = Plan(data["settings"], Scan(data["rows"], data["ids"], data["places"]))
        known = data["schema"] == SCHEMA and is_whole(plan.scan.count, 1, MAX_ROWS) and _is_sound(plan)
        _ = plan.recipe
    except (TypeError, KeyError, AttributeError, ValueError):
        known = False
    if not known:
        raise ValueError(f"{path}: not the description of a job that this version can continue")
    return plan


def _is_sound(plan: Plan) -> bool:
    sizes = is_whole(plan.settings["shard_size"], 1, MAX_ROWS) and plan.format in FORMATS
    return sizes and len(plan.scan.places) == plan.shards and all(map(_is_place, plan.scan.places))


def _is_place(place: Any) -> bool:
    if place is None:
        return True
    return isinstance(place, list) and len(place) == 2 and all(is_whole(x, 0, 2**62) for x in place)


def _to_json(plan: Plan) -> str:
    scan = plan.scan
    data = {"schema": SCHEMA, "settings": plan.settings, "rows": scan.count, "ids": scan.ids}
    return json.dumps(data | {"places": scan.places})


def _require_equal(output: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless two jobs are the same."""
    old, new = _flat(there), _flat(here)
    names = [name for name in (*new, *(set(old) - set(new))) if old.get(name) != new.get(name)]
    names = [name for name in names if name != "rows.name"]  # whose contents count
    if not names:
        return
    names.sort(key=lambda name: not name.endswith("sha256"))
    name, more = names[0], f" (and {len(names) - 1} more differences)" if len(names) > 1 else ""
    if name == "recipe.model.sha256":
        was, now = there["recipe"]["model"], here["recipe"]["model"]
        files = [f"{shown(one['name'])} (sha256 {str(one['sha256'])[:10]}…)" for one in (was, now)]
        raise ValueError(f"{output} was begun with another model: {files[0]}, not {files[1]}{more}")
    raise ValueError(
        f"{output} belongs to another job, whose {name} is {shown(old.get(name))}, not "
        f"{shown(new.get(name))}{more}"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat
