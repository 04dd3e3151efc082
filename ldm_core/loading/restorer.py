"""Load a network for faces: `ldm_core.restoration.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from ldm_core.checkpoint.reader import read
from ldm_core.errors import CheckpointError
from ldm_core.loading.find import find_parts
from ldm_core.loading.load import load_part
from ldm_core.loading.restoration_parts import RESTORATION_PARTS
from ldm_core.loading.weights import held
from ldm_core.restoration.restorer import Restorer


def load(
    path: str | Path,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
    config: Any = None,
    mmap: bool = True,
) -> Restorer:
    """Load a face restorer, detector or parser from its published file, or from one that `save` wrote.

    config: the network's configuration, where the tensors do not tell it (`GFPGANConfig`'s variant).
    The other options are those of `ldm_core.load`. The result's `licence` says under what terms the published
    weights stand.

    Raises CheckpointError for a file that cannot be read, that contains no such network, or whose tensors do
    not form one, and ValueError for an unknown device or dtype.
    """
    checkpoint = read(path, values=False)
    found = find_parts(checkpoint)
    kinds = [part.name for part in RESTORATION_PARTS if part.name in found]
    if not kinds:
        raise CheckpointError(
            f"{checkpoint.path.name} contains no network for faces; {held(checkpoint, found)}"
        )
    network = load_part(path, kinds[0], device=device, dtype=dtype, config=config, mmap=mmap)
    return Restorer(network, kinds[0], network.config)
