"""The workflow of GitHub Actions can be read, and names files and versions of this project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def test_it_runs_what_must_pass_before_a_change_lands() -> None:
    (job,) = WORKFLOW["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "bash .ci/run"
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (words,) = re.findall(r"^make ([a-z ]+)", gate, re.MULTILINE)
    targets = re.findall(r"^([a-z.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words.split() and set(words.split()) <= set(targets)


def test_it_runs_on_pushes_and_requests_and_may_only_read() -> None:
    assert set(WORKFLOW[True]) == {"push", "pull_request"}  # a YAML 1.1 reader takes the key `on` for a truth value
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_its_versions_of_python_begin_with_the_oldest_that_is_supported() -> None:
    (job,) = WORKFLOW["jobs"].values()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [tuple(map(int, version.split("."))) for version in job["strategy"]["matrix"]["python"]]
    first = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert versions[0] == first and versions == [(3, minor) for minor in range(first[1], versions[-1][1] + 1)]
    assert job["container"] == "python:${{ matrix.python }}-bookworm"
