"""The wheel holds what runs the demo, and no script that trained the miniature world."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from foreign import foreign_lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("apdm", "tools", "pyproject.toml", "README.md", "LICENSE"):
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copyfile(source, target)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=folder / "source", check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_the_bundled_models_and_no_training_script(installed: Path) -> None:
    names = {path.relative_to(installed).as_posix() for path in sorted(installed.rglob("*")) if path.is_file()}
    code = {name for name in names if name.endswith(".py")}
    assert all(name.startswith("apdm/") for name in code)
    parts = ("__init__", "attributes", "captions", "drawing", "networks", "people", "subjects")
    assert {name for name in code if name.startswith("apdm/portraits/")} == {
        f"apdm/portraits/{name}.py" for name in parts
    }
    weights = {
        p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "apdm/portraits/weights").rglob("*")) if p.is_file()
    }
    recipes = {path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "apdm/recipes").rglob("*.yaml"))}
    assert recipes and weights | recipes <= names


def test_the_wheel_draws_the_demo_s_people_and_knows_its_version(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=300
        ).stdout

    run("-m", "apdm.portraits.subjects", "--output_dir", "people", "--consenting", "1", "--strangers", "2")
    assert len(list((tmp_path / "people/strangers").glob("*.png"))) == 2
    assert run("-m", "apdm", "--version").startswith("apdm ")
    assert str(installed) in run("-c", "import apdm; print(apdm.__file__)")


def test_the_wheel_runs_the_demo_in_two_processes_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "apdm", "demo", "--size", "tiny", "--num_processes", "2", "--output_dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert foreign_lines(done.stderr) == []
    assert [line for line in done.stderr.splitlines() if re.fullmatch(r"apdm: \d/5 [a-z ]+", line)] == [
        "apdm: 1/5 preparing",
        "apdm: 2/5 hardening the weights",
        "apdm: 3/5 protecting the photos",
        "apdm: 4/5 attacking both models",
        "apdm: 5/5 attacking with the protected photos",
    ]
    assert "2 processes (ddp)" in done.stderr
    summary = done.stdout.splitlines()
    assert len(summary) <= 15 and any(line.split() == ["open", "out/report.html"] for line in summary)
    assert {"model", "images", "results.json", "report.html", "manifest.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert "Not finished" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")
