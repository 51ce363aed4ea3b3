"""The page of a run that is still at work, or was stopped: what is done, what is not, and the pictures so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from apdm.report.pictures import encode_pictures
from apdm.report.template import write_page


def write_progress_page(
    output: Path, stages: Sequence[str], number: int, pictures: Mapping[str, Sequence[Image.Image]]
) -> None:
    """Write the page.

    Args:
        stages: the names of all stages.
        number: the stage that has begun, from 1.
        pictures: {title: pictures}.
    """
    states = ["done" if place < number else "now" if place == number else "todo" for place in range(1, len(stages) + 1)]
    write_page(
        "progress.html.j2",
        output,
        {
            "stages": list(zip(stages, states, strict=True)),
            "sheets": {title: images for title, images in encode_pictures(pictures).items() if images},
        },
    )
