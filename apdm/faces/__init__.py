"""One small interface to everything that looks at faces; training, attacks and audit use no other.

Detection with five landmarks, alignment, identity embedding, and a score for whether a picture shows a face at all.
The bundled encoders know the miniature world's portraits and nothing else; for photographs a user names model files.
"""

from apdm.faces.align import align, jitter, similarity, warp
from apdm.faces.aligned import AlignedEncoder, DetectorScore
from apdm.faces.base import Face, FaceDetector, FaceEncoder, FaceScore
from apdm.faces.load import load_detector, load_encoder, load_encoders, load_face_score

__all__ = [
    "AlignedEncoder",
    "DetectorScore",
    "Face",
    "FaceDetector",
    "FaceEncoder",
    "FaceScore",
    "align",
    "jitter",
    "load_detector",
    "load_encoder",
    "load_encoders",
    "load_face_score",
    "similarity",
    "warp",
]
