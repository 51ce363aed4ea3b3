"""Hardening runs of a tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import arguments, write_people

from apdm.cli import main


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def run(tiny_pipeline: Path, people: Path) -> Callable[..., int]:
    return lambda output, **changes: main(["harden", *arguments(tiny_pipeline, people, output, **changes)])
