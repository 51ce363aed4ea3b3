"""The names of an audit's pictures are names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from apdm.audit.results.picture_names import file_name


def test_a_usual_spec_can_be_read_in_the_name() -> None:
    assert file_name("dreambooth:photos=jpeg/quality=50") == "dreambooth_photos=jpeg_quality=50"


@pytest.mark.parametrize("word", ["folder", "größe", "写真"])
def test_a_spec_of_any_length_gives_a_file_of_its_own(tmp_path: Path, word: str) -> None:
    specs = [f"/home/{'/'.join([word] * 90)}/mine.py:Mine:learning_rate={rate}" for rate in ("1e-4", "2e-4")]
    for spec in specs:
        (tmp_path / f".{file_name(spec)}.png.partial-12345").touch()
    assert len([*tmp_path.iterdir()]) == 2
    assert all(file_name(spec).startswith(f"_home_{word}_{word}") for spec in specs)
