"""RetinaFace: boxes, scores and five points of the faces in a photo."""

from ldm_core.restoration.retinaface.anchors import Found, decode
from ldm_core.restoration.retinaface.config import RetinaFaceConfig
from ldm_core.restoration.retinaface.detector import FaceDetector
from ldm_core.restoration.retinaface.network import RetinaFace

__all__ = ["FaceDetector", "Found", "RetinaFace", "RetinaFaceConfig", "decode"]
