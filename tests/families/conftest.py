"""Fixtures of the families' tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def copied(folders, tmp_path: Path) -> Callable[[str], Path]:
    """copied(kind) -> a copy of that pipeline's folder, to write into."""
    return lambda kind: Path(shutil.copytree(folders(kind), tmp_path / "model"))
