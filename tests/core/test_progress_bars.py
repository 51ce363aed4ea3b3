"""Progress bars are drawn on request only, and no message shares their line."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from apdm.core.logging import get_logger, messages_on_stderr
from apdm.core.terminal import progress_bar, say, show_progress

logger = get_logger("apdm.some.module")


def drawn(capsys: pytest.CaptureFixture[str], items: range = range(3), **options: Any) -> bool:
    with progress_bar(items, desc="work", unit="step", **options) as bar:
        for _ in bar:
            pass
    return "work" in capsys.readouterr().err


def test_a_bar_is_hidden_unless_somebody_asked_for_bars(capsys: pytest.CaptureFixture[str]) -> None:
    assert not drawn(capsys)
    with show_progress():
        assert drawn(capsys)
        assert not drawn(capsys, shown=False)
        with show_progress(False):
            assert not drawn(capsys)
        assert drawn(capsys)
    assert not drawn(capsys)


def test_a_bar_with_nothing_to_do_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        assert not drawn(capsys, range(0))
        assert not drawn(capsys, range(0), total=4, initial=4)
        assert drawn(capsys, range(2, 4), total=4, initial=2)
        with progress_bar(total=0, unit="step") as bar:
            bar.set_description("work")
        assert capsys.readouterr().err == ""


def test_a_number_is_apart_from_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(), progress_bar(total=2, unit="step", mininterval=0) as bar:
        bar.update()
    said = capsys.readouterr().err
    assert " step/s" in said and "0step" not in said and "?step" not in said


def test_a_message_stands_on_a_line_of_its_own_while_a_bar_is_drawn_and_after_it_was_broken_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
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
