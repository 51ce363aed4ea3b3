"""The report's tests share one set of results and pictures."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from tiny_results import make_pictures, make_results


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture
def pictures() -> dict[str, list[Image.Image]]:
    return make_pictures()
