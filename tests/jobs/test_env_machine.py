"""`apdm env` says what a machine lacks for which job."""

from __future__ import annotations

import pytest

from apdm.jobs.env_machine import GB, jobs_ready


def rows(memory: int | None, disk: int, *packages: str) -> dict[str, str]:
    lines = jobs_ready(memory, disk, lambda name: name in packages)
    return {name: text for name, text in (line.split("  ", 1) for line in lines)} | {"all": "\n".join(lines)}


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (None, "needs a GPU of 24 GB"),
        (16 * GB, "needs a GPU of 24 GB"),
        (25_000_000_000, "ready, with --preset 24gb --image_layer.method none"),
        (47 * GB, "ready, with --preset 48gb"),
        (85 * GB, "ready, with no preset"),
    ],
)
def test_the_card_decides_about_the_preset(memory: int | None, said: str) -> None:
    assert rows(memory, 500 * GB, "bitsandbytes")["harden SD 1.5"].strip() == said


def test_missing_packages_and_disk_are_named() -> None:
    found = rows(25 * GB, 10 * GB)
    assert 'apdm[memory]"' in found["harden SD 1.5"] and "are free here)" in found["harden SD 1.5"]
    assert 'needs pip install "apdm[faces]"' in found["all"] and 'needs pip install "apdm[search]"' in found["all"]
    assert "ready" in rows(None, GB, "insightface")["faces in real photos"]
