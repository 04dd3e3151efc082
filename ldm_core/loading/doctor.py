"""The checkpoint doctor: identify a file, list its contents and anything suspicious, and show how to load it.

Only headers and small tensors are read, so a 4 GB file takes a moment; `check_values` reads everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.folder import ADAPTER_FILES, adapter_file
from ldm_core.checkpoint.key_map import some
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.values import all_finite
from ldm_core.loading.claims import Claim
from ldm_core.loading.diagnosis import Diagnosis, Sure, diagnose
from ldm_core.loading.evidence import CONFIG_KEY
from ldm_core.loading.find import EMA, PartSource, ema_key, find_parts, has_ema, leftovers
from ldm_core.loading.parts import model_slots
from ldm_core.loading.statements import StoredBetas, stored_betas
from ldm_core.support.printable import few, printable, shown

FOREIGN_SHOWN = 32
ROWS_SHOWN = 64  # of metadata; kohya's trainer writes about 60 entries


@dataclass(frozen=True)
class Report:
    """The result of `inspect`. `str()` gives a table for people, `to_dict()` plain values for programs.

    family, sure, why   the kind of model: "proved" by tensors or metadata, "fits" several, or "unknown"
    presets             the known models with exactly these tensors
    parts               part -> number of tensors and parameters, layout and prefix
    ema                 whether the file contains averaged U-Net weights
    schedule            a description of the betas in the file, or None
    claims              the claims from which `load` decides the configuration, one line per source
    prediction          "eps", "v", "x0", or None where the file does not prove it
    step                the number of training steps, if stated
    ignored, unknown    tensors outside the parts: those not needed, with the reason, and all others
    suspicious          warnings about the file, one sentence each
    not_finite          tensors with NaN or infinity; None without `check_values`
    checksums           the result of the comparison, as text; None without `verify`
    foreign             classes and functions in a pickle, which were not imported
    load                the line of Python that loads the file, or None
    sample              the line of Python that draws with it, or None
    licence             the licence of the published weights with these tensors, where this package knows it
    """

    path: str
    format: str
    tensors: int
    bytes: int
    family: str
    sure: Sure
    why: str
    presets: tuple[str, ...]
    parts: dict[str, dict[str, Any]]
    missing: tuple[str, ...]
    dtypes: dict[str, int]
    ema: bool
    schedule: str | None
    claims: tuple[str, ...]
    prediction: str | None
    step: int | None
    ignored: dict[str, str]
    unknown: tuple[str, ...]
    suspicious: tuple[str, ...]
    not_finite: tuple[str, ...] | None
    checksums: str | None
    metadata: dict[str, Any]
    foreign: tuple[str, ...]
    load: str | None
    sample: str | None
    licence: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON except for NaN and infinity, which JSON lacks."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("file", self.path),
            ("format", f"{self.format}, {self.tensors:,} tensors, {self.bytes / 2**20:,.1f} MiB"),
            ("model", f"{self.family} ({self.sure}: {self.why})"),
            *self._part_rows(),
            *(("claims", claim) for claim in self.claims),
            ("types", ", ".join(f"{name} × {count}" for name, count in self.dtypes.items())),
            ("EMA", self._ema_words()),
            ("schedule", self.schedule or "no betas in the file"),
            ("predicts", self.prediction or "not stated in the file"),
            ("trained", "not stated in the file" if self.step is None else f"{self.step:,} steps"),
        ]
        shown = {k: v for k, v in self.metadata.items() if k != CONFIG_KEY and not k.endswith(".json")}
        rows += [(key[:80], str(value)[:80]) for key, value in list(shown.items())[:ROWS_SHOWN]]
        if len(shown) > ROWS_SHOWN:
            rows.append(("…", f"{len(shown) - ROWS_SHOWN:,} more metadata entries"))
        if self.ignored:
            rows.append(("not needed", some(list(self.ignored))))
        if self.unknown:
            rows.append(("unknown", some(list(self.unknown))))
        if self.foreign:
            rows.append(("not imported", few(self.foreign, FOREIGN_SHOWN)))
        rows += [("suspicious", sentence) for sentence in self.suspicious]
        if self.not_finite is not None:
            rows.append(("values", some(list(self.not_finite)) + " with NaN or infinity"))
        if self.checksums is not None:
            rows.append(("checksums", self.checksums))
        if self.licence is not None:
            rows.append(("licence", self.licence))
        rows.append(("load", self.load or "not supported"))
        if self.sample is not None:
            rows.append(("sample", self.sample))
        rows = [(printable(name), printable(value)) for name, value in rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _part_rows(self) -> list[tuple[str, str]]:
        if len(self.missing) == len(self.parts):
            return []
        rows = []
        for part, found in self.parts.items():
            text = "missing"
            if found["tensors"]:
                text = f"{found['tensors']:,} tensors, {found['parameters']:,} parameters, "
                text += f"{found['layout']} names"
                text += f" under {found['prefix']}" if found["prefix"] else ""
            rows.append((part, text))
        return rows

    def _ema_words(self) -> str:
        if self.ema:
            by_default = any("use_ema True" in claim for claim in self.claims)
            return f"averaged U-Net weights: load(…{'' if by_default else ', ema=True'})"
        counters = any(key.startswith("model_ema.") for key in self.ignored)
        return "none, only the counters of a training run" if counters else "none"


_CHECKSUMS = {
    "torch-zip": "every member of the archive matches its checksum",
    "diffusers": "every member of its .bin archives matches its checksum; other files have none",
}


def inspect(
    path: str | Path, *, check_values: bool = False, variant: str | None = None, verify: bool = False
) -> Report:
    """Describe a checkpoint, a diffusers folder, or an adapter.

    check_values: read every tensor and check for NaN and infinity.
    verify: read the whole of a zip archive and compare it with its checksums.

    Raises CheckpointError if the file cannot be read, or if a checksum differs, naming the damaged members.
    """
    folder = Path(path)
    of_adapter = folder.is_dir() and any((folder / name).is_file() for name in ADAPTER_FILES)
    file = adapter_file(folder) if of_adapter else path
    checkpoint = read(file, values=True if check_values else "small", variant=variant, verify=verify)
    tensors = checkpoint.tensors
    sources = find_parts(checkpoint)
    diagnosis = diagnose(checkpoint, sources)
    slots = tuple(dict.fromkeys((*diagnosis.missing, *sources))) if sources else model_slots()
    known, unknown = leftovers(checkpoint, sources.values())
    unknown += diagnosis.unused
    betas = stored_betas(checkpoint)
    not_finite = None
    if check_values:
        read_too = (k for k in tensors if k not in known or k.startswith(EMA))
        not_finite = tuple(k for k in read_too if not all_finite(tensors[k]))
    return Report(
        path=str(path),
        format=checkpoint.format,
        tensors=len(tensors),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        family=diagnosis.family,
        sure=diagnosis.sure,
        why=diagnosis.why,
        presets=diagnosis.presets,
        parts={slot: _part(sources.get(slot)) for slot in slots},
        missing=diagnosis.missing if sources else slots,
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values()).most_common()),
        ema=has_ema(checkpoint),
        schedule=None if betas is None else repr(StoredBetas(betas)),
        claims=_by_source(diagnosis.claims),
        prediction=diagnosis.prediction,
        step=_step(checkpoint),
        ignored=known,
        unknown=() if diagnosis.is_other else tuple(unknown),
        suspicious=_suspicious(checkpoint, sources, diagnosis, unknown),
        not_finite=not_finite,
        checksums=_CHECKSUMS.get(checkpoint.format, "the format has none") if verify else None,
        metadata=checkpoint.metadata,
        foreign=checkpoint.foreign,
        load=diagnosis.load,
        sample=diagnosis.sample,
        licence=diagnosis.licence,
    )


def _part(source: PartSource | None) -> dict[str, Any]:
    if source is None:
        return {"tensors": 0, "parameters": 0, "layout": None, "prefix": None}
    return {
        "tensors": len(source.tensors),
        "parameters": sum(tensor.numel() for tensor in source.tensors.values()),
        "layout": source.layout.name,
        "prefix": source.prefix,
    }


def _step(checkpoint: Checkpoint) -> int | None:
    """The number of training steps in the metadata, under the names that various programs use."""
    for name in ("global_step", "step", "ss_steps", "modelspec.steps"):
        value = checkpoint.metadata.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 16:
            value = int(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return int(value)
    return None


def _suspicious(
    checkpoint: Checkpoint, sources: Mapping[str, PartSource], diagnosis: Diagnosis, unknown: list[str]
) -> tuple[str, ...]:
    found = list(diagnosis.contradictions)
    if checkpoint.foreign:
        found.append(
            "its pickle names classes or functions that torch.load without weights_only would run; "
            "nothing was imported here"
        )
    for key, tensor in checkpoint.tensors.items():
        if key.endswith("position_ids") and not _counts_up(tensor):
            found.append(f"{key} is damaged ({str(tensor.dtype).removeprefix('torch.')}); it is not used")
    stated = ("v_pred", "ztsnr")
    empty = [key for key, tensor in checkpoint.tensors.items() if tensor.numel() == 0 and key not in stated]
    if empty:
        found.append(f"tensors without any values: {some(empty)}")
    unet = next((source for source in sources.values() if "prediction" in source.part.brings), None)
    if unet is not None and has_ema(checkpoint):
        lost = [ema_key(name) for name in unet.tensors if ema_key(name) not in checkpoint.tensors]
        if lost:
            found.append(
                f"{some(lost)} missing from the averaged weights, so load(…, ema=True) rejects the file"
            )
    if unknown and not diagnosis.is_other:
        found.append("unknown tensors, so load rejects the file")
    return tuple(found)


def _by_source(claims: Iterable[Claim]) -> tuple[str, ...]:
    """The claims as text: each source with its fields, and their values if they are short."""
    said: dict[str, list[str]] = {}
    for claim in claims:
        if claim.value is None or claim.value is False:
            continue
        is_short = isinstance(claim.value, (str, int, float))
        said.setdefault(claim.source, []).append(
            f"{claim.field} {shown(claim.value)}" if is_short else claim.field
        )
    return tuple(f"{source}: {', '.join(fields)}" for source, fields in said.items())


def _counts_up(ids: Tensor) -> bool:
    """Whether these are the integers 0, 1, 2 …."""
    if ids.is_floating_point() or ids.is_meta:
        return ids.is_meta
    return bool(torch.equal(ids.flatten(), torch.arange(ids.numel(), dtype=ids.dtype)))
