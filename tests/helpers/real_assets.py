"""Real models and photos, which are nobody's to publish: they lie outside the repository, and tests that use them are
skipped where they are missing.
"""

import os
from pathlib import Path

import pytest

ASSETS = Path(os.environ.get("APDM_TEST_ASSETS") or Path(__file__).parents[3] / "shared" / "assets")
needs_assets = pytest.mark.skipif(
    not (ASSETS / "encoders").is_dir(), reason="real models and photos are not here: name them with APDM_TEST_ASSETS"
)
