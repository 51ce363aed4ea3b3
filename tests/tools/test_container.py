"""The Dockerfile copies files that exist, and what it runs and what its page shows fits the project."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from apdm.config import load_config
from apdm.config.help import COMMANDS

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
PAGE = (ROOT / "docs/container.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def said(instruction: str) -> list[str]:
    """What stands after each instruction of a kind."""
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{instruction} ")]


def runs() -> list[list[str]]:
    """The words after the options of each `docker run` and `docker build` of the page, which begin with the word."""
    code = "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in code.splitlines() if line.startswith("docker ")]


def test_it_copies_what_exists_and_is_not_ignored() -> None:
    copied = {name for words in said("COPY") for name in words.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in let_through and {line[1:] for line in let_through if line.startswith("!")} == copied
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"}
    assert needed <= copied


def test_it_has_a_python_extras_and_a_torch_that_the_project_knows() -> None:
    (image,) = said("FROM")
    version = re.match(r"python:3\.(\d+)-", image)
    assert version is not None and int(version[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    arguments = dict(word.split("=", 1) for word in said("ARG"))
    given = [word.split("=", 1) for words in runs() for word in words if word.startswith(("TORCH_INDEX=", "EXTRAS="))]
    assert given and all(name in arguments for name, _ in given)
    for extras in (arguments["EXTRAS"], *(value for name, value in given if name == "EXTRAS")):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(re.findall("^torch==", pinned, re.MULTILINE)) == 1 and any("'^torch=='" in run for run in said("RUN"))


def test_it_runs_the_demo() -> None:
    assert (said("ENTRYPOINT"), said("CMD")) == (['["apdm"]'], ['["demo"]'])
    assert PROJECT["scripts"]["apdm"] and "demo" in COMMANDS


@pytest.mark.parametrize("words", [words for words in runs() if words[0] == "run"], ids=" ".join)
def test_the_commands_of_its_page_can_be_parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the configurations are in the image, at the same place
    after = words[next(i for i, word in enumerate(words) if word.split(":")[0] == "apdm") + 1 :]
    command, *options = after or ["demo"]
    assert load_config(COMMANDS[command], options)
    for mounted in (word.split(":")[1] for word in words if word.startswith("/") and ":" in word):
        assert mounted == "/huggingface" or mounted.startswith("/data/")
