"""The miniature world: portraits drawn by this package, and a small text-to-image pipeline that learnt to draw them."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"
ADAPTER = WEIGHTS / "faceid-adapter.safetensors"
