"""Progress bars are drawn on request only."""

from __future__ import annotations

import pytest

from apdm.core.terminal import progress_bar, show_progress


def drawn(capsys: pytest.CaptureFixture[str], **options: bool) -> bool:
    for _ in progress_bar(range(3), desc="work", **options):
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
