"""MTCNN: finds faces and five points of each, with weights that are part of this package."""

from ldm_core.restoration.mtcnn.cascade import detect, find_faces
from ldm_core.restoration.mtcnn.networks import MTCNN, bundled

__all__ = ["MTCNN", "bundled", "detect", "find_faces"]
