"""Progress bars are drawn on request only, and no message shares their line."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest
from real_signals import LAUNCHED

from apdm.core import plain_bar
from apdm.core.logging import get_logger, messages_on_stderr
from apdm.core.stages import Stages
from apdm.core.terminal import progress_bar, say, show_progress
from apdm.core.variables import environment

logger = get_logger("apdm.some.module")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on standard error is a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def drawn(capsys: pytest.CaptureFixture[str], items: range = range(3), **options: Any) -> bool:
    with progress_bar(items, desc="work", unit="step", **options) as bar:
        for _ in bar:
            pass
    return "work" in capsys.readouterr().err


def test_a_bar_is_hidden_unless_somebody_asked_for_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    assert not drawn(capsys)
    with show_progress():
        assert drawn(capsys)
        with environment(LAUNCHED):  # as the second of two processes
            assert not drawn(capsys)
        with show_progress(False):
            assert not drawn(capsys)
        assert drawn(capsys)
    assert not drawn(capsys)


def test_a_bar_with_nothing_to_do_is_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    with show_progress():
        assert not drawn(capsys, range(0))
        assert not drawn(capsys, range(0), total=4, initial=4)
        assert drawn(capsys, range(2, 4), total=4, initial=2)
        with progress_bar(total=0, unit="step") as bar:
            bar.set_description("work")
        assert capsys.readouterr().err == ""


def test_the_time_left_is_not_guessed_from_the_first_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST", "LEAST", "MOST"):
        monkeypatch.setattr(plain_bar, name, 0.0)
    with show_progress(), progress_bar(total=1000, initial=500, desc="work", unit="step") as bar:
        for steps in (1, 9):
            bar.update(steps)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("work: 50% done") and "work: 51% done, about " in second


def test_a_number_is_apart_from_its_unit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    with show_progress(), progress_bar(total=2, unit="step", mininterval=0) as bar:
        bar.update()
    said = capsys.readouterr().err
    assert " step/s" in said and "0step" not in said and "?step" not in said


def test_a_message_stands_on_a_line_of_its_own_while_a_bar_is_drawn_and_after_it_was_broken_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    with messages_on_stderr(), show_progress():
        try:
            with progress_bar(range(4), desc="work", unit="step", mininterval=0) as bar:
                for step in bar:
                    if step == 1:
                        logger.warning("in between")
                    if step == 2:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            logger.error("interrupted")
    shown = capsys.readouterr().err.split("\n")
    assert [line.rpartition("\r")[2] for line in shown if "apdm:" in line] == ["apdm: in between", "apdm: interrupted"]
    assert shown[-2:] == ["apdm: interrupted", ""]  # no bar is drawn anew after the last word


def test_a_terminal_that_is_gone_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as gone, monkeypatch.context() as given:
        given.setattr(sys, "stderr", gone)
        given.setattr(sys, "stdout", gone)
        with messages_on_stderr(), show_progress():
            with progress_bar(range(3), unit="step", mininterval=0) as bar:
                assert list(bar) == [0, 1, 2]
            for _ in range(2):
                logger.warning("nobody reads this")
                say("nor this")


def test_without_a_terminal_a_line_says_now_and_then_how_long_it_still_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with show_progress(), progress_bar(range(100), desc="harden", unit="step") as bar:
        for _ in bar:
            now[0] += 4.0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "apdm: harden: 2% done, about 7 min left"
    assert said[-1].endswith(" s left") and 8 <= len(said) <= 11


def test_stages_are_numbered_and_bars_begin_with_the_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    entered: list[int] = []
    stages = Stages(["preparing", "hardening"], entered=entered.append)
    with messages_on_stderr(), show_progress(), stages:
        stages.begin("preparing")
        stages.begin("hardening")
        with progress_bar(total=2, desc="work", unit="step", mininterval=0) as bar:
            bar.set_description("other work")
            bar.update(2)
    said = capsys.readouterr().err
    assert "apdm: 1/2 preparing\napdm: 1/2 done in 1 s\napdm: 2/2 hardening\n" in said
    assert "2/2 work:" in said and "2/2 other work: 100%" in said and entered == [1, 2]
    assert not drawn(capsys) and said.endswith("apdm: 2/2 done in 1 s\n")
