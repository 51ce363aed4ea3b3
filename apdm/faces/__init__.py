"""Everything that looks at faces: detection, alignment, identity embeddings, and a score for "is this a face?".

Training, attacks and audits use the interfaces of this package and no other. The bundled detector, encoders and face
score know only the drawn portraits of the miniature world. For photographs, users name model files of their own.
"""

from apdm.faces.align import align, jitter, similarity, warp
from apdm.faces.aligned_encoder import AlignedEncoder
from apdm.faces.choice import FaceChoice, FaceNetworks
from apdm.faces.detector_score import DetectorScore
from apdm.faces.interfaces import Face, FaceDetector, FaceEncoder, FaceScore
from apdm.faces.load import load_detector, load_encoder, load_encoders, load_face_score

__all__ = [
    "AlignedEncoder",
    "DetectorScore",
    "Face",
    "FaceChoice",
    "FaceDetector",
    "FaceEncoder",
    "FaceNetworks",
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
