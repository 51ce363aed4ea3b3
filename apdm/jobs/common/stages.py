"""The stages of the jobs, and the report that grows while a hardening run with an audit is at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from apdm.config import HardenConfig
from apdm.core.files import list_files
from apdm.core.launcher import is_main_process
from apdm.core.logging import get_logger
from apdm.core.pictures import read_grid
from apdm.core.stages import Stages
from apdm.export.layout import CLASS_IMAGES, IMAGES, REPORT, SAMPLES
from apdm.report.progress_page import write_progress_page

logger = get_logger(__name__)

PREPARING, HARDENING, PHOTOS = "preparing", "hardening the weights", "protecting the photos"
ATTACKS, PHOTO_ATTACKS = "attacking both models", "attacking with the protected photos"
SHOWN = 6  # pictures of a kind on the page


def harden_stages(config: HardenConfig) -> Stages:
    """Return the stages of a hardening run. The main process writes the report as each begins, if there is an audit."""
    photos, audit = config.image_layer.enabled, config.audit.enabled
    names = [PREPARING, HARDENING, *[PHOTOS] * photos, *[ATTACKS] * audit, *[PHOTO_ATTACKS] * (photos and audit)]
    return Stages(names, entered=_writer(config, names) if audit and is_main_process() else None)


def _writer(config: HardenConfig, names: list[str]) -> Callable[[int], None]:
    output = Path(config.output_dir)

    def write(number: int) -> None:
        if number == 1 or names[number - 1] == PHOTO_ATTACKS:  # no folder yet; the audit writes a better page
            return
        write_progress_page(output / REPORT, names, number, _pictures(config))
        if number == 2:
            logger.info("the first pictures are in %s; it grows after each stage", output / REPORT)

    return write


def _pictures(config: HardenConfig) -> dict[str, list[Image.Image]]:
    """The pictures so far: what the base draws, what was drawn while training, and the protected photos if allowed."""
    output = Path(config.output_dir)
    folders = {f'What the original model draws for "{config.class_prompt}"': output / CLASS_IMAGES}
    if config.audit.show_photos:
        folders["Protected photos"] = output / IMAGES
    found = {title: [read_grid(path) for path in _files(folder)[:SHOWN]] for title, folder in folders.items()}
    found |= {f"Drawn while hardening: {path.name}": [read_grid(path)] for path in _files(output / SAMPLES)[-2:]}
    return found


def _files(folder: Path) -> list[Path]:
    return [path for path in list_files(folder) if path.suffix in (".png", ".jpg")] if folder.is_dir() else []


def audit_stages(*, models: bool, photos: bool) -> Stages:
    """Return the stages of an audit, in which models or protected photos or both are attacked."""
    return Stages([PREPARING, *[ATTACKS] * models, *[PHOTO_ATTACKS] * photos])
