"""The pictures of an audit on disk: one sheet for each name, in the folder `pictures` beside results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from apdm.audit.photo_results import ImageLayer, PhotoResults
from apdm.audit.results import AnyResults, Results
from apdm.audit.rows import file_name
from apdm.core.files import list_files
from apdm.core.pictures import grid, save_png, to_pil
from apdm.export.layout import PICTURES
from apdm.report.pictures import Pictures

COLUMNS = 4  # of a sheet; its pictures are squares
WHITE = ((255, 255),) * 3  # lowest and highest value of each channel


def save_pictures(pictures: Mapping[str, Tensor], output: Path) -> Pictures:
    """Save pictures, {name: [N, 3, H, W] in [0, 1]}, as one sheet for each name, and return them for the report."""
    for name, images in pictures.items():
        save_png(grid(images, COLUMNS), output / PICTURES / f"{name}.png")
    return {name: [to_pil(image) for image in images] for name, images in pictures.items()}


def read_pictures(results: AnyResults, output: Path) -> Pictures:
    """Read what `save_pictures` saved, as far as a report shows it.

    Args:
        results: the results that were saved with the pictures.
        output: the folder of results.json.

    Returns:
        {name: pictures}. A sheet that is not there any more, or cannot be read, gives a name without pictures.
    """
    folder = output / PICTURES
    sheets = {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_files(folder)}
    chosen: dict[str, Path | None] = {}
    places: set[str] = set()
    drawn = list(_drawn(results))
    for name, expected in drawn:
        place = name.rpartition("/")[0]  # without the seed: a report shows the first one
        if place not in places and (name in sheets or expected):
            places.add(place)
            chosen[name] = sheets.get(name)
    others = sheets.keys() - dict(drawn).keys()
    chosen |= {name: sheets[name] for name in sorted(others)}
    if isinstance(results, Results):
        chosen |= {name: sheets.get(name) for name in ("class/base", "class/hardened")}
    return {name: [] if sheet is None else _cut(sheet) for name, sheet in chosen.items()}


def _drawn(results: AnyResults) -> Iterator[tuple[str, bool]]:
    """The names of the pictures that attacks gave, in the order of the rows, and whether there must be such pictures.

    A failed attack may have given some. Not every model has attention maps.
    """
    layer: ImageLayer | None = results.image_layer
    if not isinstance(results, PhotoResults):
        nominal = results.attacks[0].spec
        for row in results.attacks:
            spec = "attack" if row.spec == nominal else file_name(row.spec)
            place = f"{spec}/{row.model}/{row.subject}/{row.seed}"
            yield place, bool(row.identity)
            yield f"attention/{place}", False
    for one in layer.attacks if layer is not None else []:
        photos = one.photos if one.purifier is None else f"{one.photos}+{file_name(one.purifier)}"
        yield f"layer/{file_name(one.attack)}/{photos}/{one.subject}/{one.seed}", bool(one.identity)


def _cut(path: Path) -> list[Image.Image]:
    """The pictures of a sheet. White places at its end are gaps. Nothing is returned if the file is no sheet."""
    try:
        with _any_size(), Image.open(path) as file:
            sheet = file.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # whatever a damaged file makes Pillow raise
        return []
    side = sheet.width // COLUMNS
    if not side or sheet.width % COLUMNS or sheet.height % side:
        return []
    boxes = [
        (left, top, left + side, top + side)
        for top in range(0, sheet.height, side)
        for left in range(0, sheet.width, side)
    ]
    pictures = [sheet.crop(box) for box in boxes]
    while pictures and len(boxes) - len(pictures) < COLUMNS - 1 and pictures[-1].getextrema() == WHITE:
        del pictures[-1]
    return pictures


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open pictures of any size, because a sheet of thousands of class pictures is no attack."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
