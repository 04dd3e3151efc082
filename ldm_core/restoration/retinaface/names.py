"""The names of RetinaFace's parameters in its files, which are the network's own, and what shapes prove."""

from __future__ import annotations

from ldm_core.checkpoint.key_map import Entry, KeyMap
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.nn.placement import parameter_names
from ldm_core.restoration.retinaface.config import RetinaFaceConfig
from ldm_core.restoration.retinaface.network import RetinaFace


def key_map(config: RetinaFaceConfig) -> KeyMap:
    """The names in the files of both backbones."""
    return {name: Entry((name,)) for name in parameter_names(RetinaFace, config)}


def retinaface_config(shapes: Shapes) -> RetinaFaceConfig:
    """Raises KeyError or ValueError for shapes that form no RetinaFace."""
    width = shapes["fpn.merge1.0.weight"][0]
    if "body.conv1.weight" in shapes:
        return RetinaFaceConfig("resnet50", shapes["body.conv1.weight"][0], width)
    return RetinaFaceConfig("mobilenet", shapes["body.stage1.0.0.weight"][0], width)


def fewest_tensors(config: RetinaFaceConfig) -> int:
    """A lower bound on the number of tensors, which the backbone fixes."""
    return 300
