"""A network that restores aligned faces, called with the levels of one face."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.restoration.alignment import SIZE, Alignment
from ldm_core.restoration.inputs import placement
from ldm_core.restoration.published import COLORIZATION, INPAINTING
from ldm_core.restoration.scripts import FACEXLIB, GPEN, SCRIPTS, Script
from ldm_core.support.printable import shown

OTHER_KINDS = ("parsenet", "retinaface")  # what `restoration.load` returns besides restorers
FIDELITY = 0.5  # of CodeFormer, where the file has none of its own
FLOAT_ERROR = 2**-10  # levels, which must not cost a whole one where levels are truncated


@dataclass(frozen=True)
class FaceNetwork:
    """A restorer, or a callable in its place, with what it is called with.

    network    from (1, 3, size, size) in [-1, 1] to the same; a tuple's first entry counts
    size       of the faces in pixels
    options    arguments by name
    script     what is done around the network
    draws      whether the network draws noise: its parameter `seed`
    fills      only white pixels are replaced (CodeFormer's file for inpainting)
    keeps_grey faces of a grey photo become grey again, as in CodeFormer's script; not with its files for
               inpainting and colorization
    """

    network: Any
    size: int
    options: Mapping[str, Any]
    script: Script
    draws: bool
    fills: bool
    keeps_grey: bool

    @classmethod
    def of(cls, restorer: Any, fidelity: float | None, alignment: Alignment | None) -> FaceNetwork:
        """restorer: what `restoration.load` returns, or a callable from faces to faces.

        A network with a parameter `w` gets the fidelity; None is the file's own, or FIDELITY. An alignment of
        None is that of the network's script.
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
            options["w"] = options.get("w", FIDELITY) if fidelity is None else fidelity
        config = getattr(restorer, "config", getattr(network, "config", None))
        own = GPEN if kind == "gpen" else FACEXLIB
        return cls(
            network,
            getattr(getattr(network, "config", None), "size", SIZE),
            options,
            own if alignment is None else SCRIPTS[alignment],
            draws="seed" in taken,
            fills=config == INPAINTING,
            keeps_grey=kind in (None, "codeformer") and config not in (INPAINTING, COLORIZATION),
        )

    @torch.inference_mode()
    def __call__(self, face: Tensor, seed: int | None = None) -> Tensor:
        """A face (size, size, 3) of levels in [0, 255] restored: the same, in whole levels.

        seed: of the noise, if the network draws some; None: fresh noise.
        Raises ValueError for a network that returns another shape, NaN or infinity.
        """
        x = (face / 127.5 - 1).permute(2, 0, 1)[None].to(**placement(self.network))
        y = self.network(x, **self.options, **({"seed": seed} if self.draws else {}))
        y = y[0] if isinstance(y, tuple) else y
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"expected a face of {tuple(x.shape)} from the network, got {found}")
        y = y[0].float().cpu()
        if not y.isfinite().all():
            raise ValueError(
                "the network returned NaN or infinity; its file may be damaged, or its type too narrow"
            )
        levels = ((y.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0)
        levels = (levels + FLOAT_ERROR).floor() if self.script.truncates else levels.round()
        if self.fills:
            white = (face == 255).all(dim=2, keepdim=True)
            levels = torch.where(white, levels, face)
        return levels


def _parameters(network: Any) -> set[str]:
    """The names of a callable's parameters; none if it does not tell them."""
    try:
        return set(
            inspect.signature(network.forward if isinstance(network, nn.Module) else network).parameters
        )
    except (TypeError, ValueError):
        return set()
