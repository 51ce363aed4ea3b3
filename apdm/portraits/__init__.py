"""The miniature world: people that this package draws, and the bundled models that were trained on the drawings.

The scripts that trained the models are in tools/portraits/ of the repository. They are not part of the package.
"""

from pathlib import Path

DEMO = Path(__file__).parent / "demo.yaml"  # options of `apdm demo`, which are those of configs/portrait.yaml
WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"  # a Stable Diffusion pipeline
ENCODERS = ("portrait-a", "portrait-b")  # names of the face encoders
FACE_SCORE = "portrait-face"
DETECTOR = "portrait"
ADAPTER = WEIGHTS / "faceid-adapter.safetensors"  # for this pipeline, in the format of IP-Adapter FaceID
