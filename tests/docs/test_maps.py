"""The docstring of a large package is a map: it names every file, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "apdm"
PACKAGES = [
    "attacks",
    "attacks/parts",
    *("audit", "audit/cells", "audit/inputs", "audit/results"),
    "config",
    "config/groups",
    "distributed",
    *("jobs", "jobs/auditing", "jobs/common", "jobs/hardening", "jobs/photos", "jobs/planning", "jobs/reproducing"),
    "protection",
    "report",
]
ROW = re.compile(r"^(\w+(?:, \w+)*) {2,}\S", flags=re.MULTILINE)  # names, and behind them what they are


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_of_a_package_names_its_files(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    named = [name for row in ROW.findall(text) for name in row.split(", ")]
    files = [path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    files += [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
    assert sorted(named) == sorted(files)
