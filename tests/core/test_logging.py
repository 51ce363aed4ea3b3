"""Messages are shown by the command line, once per run, and a program that uses the package sees none unasked."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from real_signals import LAUNCHED

from apdm.core.logging import EVERY_PROCESS, get_logger, messages_on_stderr

ROOT = Path(__file__).parents[2]
logger = get_logger("apdm.some.module")


def test_a_program_that_uses_the_package_sees_no_message_unless_it_configures_logging() -> None:
    code = "from apdm.core.logging import get_logger; get_logger('apdm.x').warning('hello')"
    asked = f"import logging; logging.basicConfig(); {code}"
    runs = [
        subprocess.run([sys.executable, "-c", c], cwd=ROOT, capture_output=True, text=True, check=True)
        for c in (code, asked)
    ]
    assert (runs[0].stdout, runs[0].stderr) == ("", "")
    assert "hello" in runs[1].stderr


def test_the_command_line_shows_each_message_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        logger.info("two\nlines of %s", "text")
        logger.debug("not this one")
    logger.info("nor this one, after the block")
    assert capsys.readouterr().err == "apdm: two lines of text\n"


def test_of_several_processes_only_the_main_one_shows_messages_that_are_not_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with messages_on_stderr():
        logger.warning("the main process says this")
        logger.warning("process 1 stands aside", extra=EVERY_PROCESS)
    assert capsys.readouterr().err == "apdm: process 1 stands aside\n"


def test_afterwards_logging_is_configured_as_before() -> None:
    package = logging.getLogger("apdm")
    before = (package.level, package.propagate, list(package.handlers))
    with pytest.raises(KeyError), messages_on_stderr():
        raise KeyError
    assert (package.level, package.propagate, package.handlers) == before
