"""The miniature world: people that this package draws, and the bundled models that were trained on the drawings.

Its training scripts are in tools/portraits/ of the repository and not part of the package.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"  # a Stable Diffusion pipeline
ADAPTER = WEIGHTS / "faceid-adapter.safetensors"  # for this pipeline, in the format of IP-Adapter FaceID
