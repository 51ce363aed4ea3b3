"""The model card of the bundled weights is what its script writes from the committed figures."""

from __future__ import annotations

import shutil
from pathlib import Path

from apdm.portraits import WEIGHTS
from tools.portraits.card import write_card


def test_the_card_beside_the_weights_is_what_the_script_writes(tmp_path: Path) -> None:
    for path in sorted(WEIGHTS.glob("*.json")):
        shutil.copyfile(path, tmp_path / path.name)
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == (WEIGHTS / "README.md").read_text(), (
        'run: python -c "from apdm.portraits import WEIGHTS; from tools.portraits.card import write_card; '
        'write_card(WEIGHTS)"'
    )


def test_lines_of_the_card_are_short() -> None:
    assert all(len(line) <= 120 for line in (WEIGHTS / "README.md").read_text().splitlines())
