"""What is in a file: format, model, parts, types, and the oddities that a user should know of.

Only headers are read; the tensors' bytes are not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_core.checkpoint.compvis import AUTOENCODER, OPEN_CLIP, TEXT_ENCODER, UNET, ignored
from ldm_core.checkpoint.detect import matching_presets, proven_config
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.key_map import printable
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.save import CONFIG_KEY

PARTS = {"unet": (UNET,), "autoencoder": (AUTOENCODER,), "text_encoder": (TEXT_ENCODER, OPEN_CLIP)}


@dataclass(frozen=True)
class Report:
    """What `inspect` found. `str()` is a table for people, `to_dict()` is for programs."""

    path: str
    format: str
    tensors: int
    bytes: int
    presets: tuple[str, ...]  # known models that have exactly these tensors
    why: str
    parts: dict[str, dict[str, int]]  # part -> {"tensors": …, "parameters": …}
    dtypes: dict[str, int]
    ema: bool
    ignored: dict[str, str]  # key -> why no network takes it
    unknown: tuple[str, ...]  # keys that are in no part and not known to be ignorable
    metadata: dict[str, Any]
    foreign: tuple[str, ...]  # classes and functions in the pickle, which were not imported

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("file", self.path),
            ("format", f"{self.format}, {self.tensors} tensors, {self.bytes / 2**20:,.1f} MiB"),
            ("model", f"{' or '.join(self.presets) or 'not a known one'} ({self.why})"),
        ]
        for name, counts in self.parts.items():
            there = f"{counts['tensors']} tensors, {counts['parameters']:,} parameters"
            rows.append((name, there if counts["tensors"] else "missing"))
        rows.append(("types", ", ".join(f"{name} × {count}" for name, count in self.dtypes.items())))
        rows.append(("EMA", "averaged U-Net weights: load(…, ema=True)" if self.ema else "none"))
        rows += [(key, str(value)[:80]) for key, value in self.metadata.items() if key != CONFIG_KEY]
        if self.ignored:
            rows.append(("not needed", f"{len(self.ignored)} tensors, such as {next(iter(self.ignored))}"))
        if self.unknown:
            rows.append(("unknown", f"{len(self.unknown)} tensors, such as {self.unknown[0]}"))
        if self.foreign:
            rows.append(("not imported", ", ".join(self.foreign)))
        rows = [(printable(name), printable(value)) for name, value in rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def inspect(path: str | Path) -> Report:
    """Describe a checkpoint. Raises CheckpointError if the file is not one."""
    checkpoint = read(path, values=False)
    tensors = checkpoint.tensors
    try:
        presets = tuple(matching_presets(proven_config({k: tuple(v.shape) for k, v in tensors.items()})))
        why = "its tensors are exactly those" if presets else "its tensors are of no preset"
    except CheckpointError as error:
        presets, why = (), str(error)
    if CONFIG_KEY in checkpoint.metadata:
        why += "; its configuration is in its metadata"
    in_parts = {part: _count(tensors, prefixes) for part, prefixes in PARTS.items()}
    prefixes = tuple(prefix for group in PARTS.values() for prefix in group)
    left_out = {key: reason for key in tensors if (reason := ignored(key)) is not None}
    return Report(
        path=str(path),
        format=checkpoint.format,
        tensors=len(tensors),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        presets=presets,
        why=why,
        parts=in_parts,
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values()).most_common()),
        ema=has_ema(checkpoint),
        ignored=left_out,
        unknown=tuple(k for k in tensors if not k.startswith(prefixes) and k not in left_out),
        metadata=checkpoint.metadata,
        foreign=checkpoint.foreign,
    )


def has_ema(checkpoint: Checkpoint) -> bool:
    """Whether a file holds averaged weights, and not only the counters that every training run leaves."""
    counters = ("model_ema.decay", "model_ema.num_updates")
    return any(key.startswith("model_ema.") and key not in counters for key in checkpoint.tensors)


def _count(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, int]:
    chosen = [t for k, t in tensors.items() if k.startswith(prefixes) and ignored(k) is None]
    return {"tensors": len(chosen), "parameters": sum(t.numel() for t in chosen)}
