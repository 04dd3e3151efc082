"""A network that restores aligned faces, called with the levels of one face."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.restoration.alignment import SIZE
from ldm_core.support.printable import shown

OTHER_KINDS = ("parsenet", "retinaface")  # what `restoration.load` returns besides restorers


@dataclass(frozen=True)
class FaceNetwork:
    """A restorer, or a callable in its place, with what it is called with.

    network  from (1, 3, size, size) in [-1, 1] to the same; a tuple's first entry counts
    size     of the faces in pixels
    options  arguments by name
    seed     of the first face, if the network draws noise: face k has seed + k
    """

    network: Any
    size: int
    options: Mapping[str, Any]
    seed: int | None

    @classmethod
    def of(cls, restorer: Any, fidelity: float, seed: int) -> FaceNetwork:
        """restorer: what `restoration.load` returns, or a callable from faces to faces.

        A network with a parameter `w` gets the fidelity; one with a parameter `seed` gets the seed.
        Raises ValueError for what is no restorer of faces.
        """
        kind = getattr(restorer, "kind", None)
        network = getattr(restorer, "network", restorer)
        if kind in OTHER_KINDS or not callable(network):
            found = kind if kind in OTHER_KINDS else type(restorer).__name__
            raise ValueError(f"expected a network that restores faces, got {shown(found)}")
        taken = _parameters(network)
        options = dict(getattr(restorer, "options", {}))
        if "w" in taken:
            options["w"] = fidelity
        size = getattr(getattr(network, "config", None), "size", SIZE)
        return cls(network, size, options, seed if "seed" in taken else None)

    @torch.inference_mode()
    def __call__(self, face: Tensor, number: int = 0) -> Tensor:
        """A face (size, size, 3) of levels in [0, 255] restored: the same, in whole levels.

        Raises ValueError for a network that returns another shape, NaN or infinity.
        """
        x = (face / 127.5 - 1).permute(2, 0, 1)[None].to(**_placement(self.network))
        options = dict(self.options) if self.seed is None else {**self.options, "seed": self.seed + number}
        y = self.network(x, **options)
        y = y[0] if isinstance(y, tuple) else y
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"expected a face of {tuple(x.shape)} from the network, got {found}")
        y = y[0].float().cpu()
        if not y.isfinite().all():
            raise ValueError(
                "the network returned NaN or infinity; its file may be damaged, or its type too narrow"
            )
        return ((y.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)


def _parameters(network: Any) -> set[str]:
    """The names of a callable's parameters; none if it does not tell them."""
    try:
        return set(
            inspect.signature(network.forward if isinstance(network, nn.Module) else network).parameters
        )
    except (TypeError, ValueError):
        return set()


def _placement(network: Any) -> dict[str, Any]:
    """The device and type of a network's weights."""
    first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return {} if first is None else {"device": first.device, "dtype": first.dtype}
