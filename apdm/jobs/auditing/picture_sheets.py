"""The pictures of an audit on disk: one sheet for each name, in the folder `pictures` beside results.json.

A sheet has COLUMNS columns. A sheet of the course of an attack, `course/...`, has one for each measured step, and a row
for each noise that the pictures start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from apdm.audit.results.file import AnyResults
from apdm.audit.results.models import AttackRow, Results
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.photos import ImageLayer, PhotoResults
from apdm.audit.results.picture_names import (
    ATTENTION,
    COURSE,
    file_name,
    photo_picture_name,
    picture_name,
    without_seed,
)
from apdm.core.files import list_files
from apdm.core.pictures import grid, read_grid, save_png, to_pil
from apdm.export.layout import PICTURES
from apdm.report.attack_page import AttackPictures, title_of
from apdm.report.pictures import Pictures, as_shown, shown_names
from apdm.report.strips import course_sheets, strip_image, strips

AFTER = "after"  # the sheet of the pictures after an attack on one model
STRIPS = "strips"  # the folder of strips among the pictures
COLUMNS = 4  # of a sheet; its pictures are squares
WHITE = ((255, 255),) * 3  # lowest and highest value of each channel


def save_pictures(pictures: Mapping[str, Tensor], output: Path) -> None:
    """Save pictures as one sheet for each name.

    They are read one name after another, because those of a whole audit may be more than the memory holds.

    Args:
        pictures: {name: [N, 3, H, W] in [0, 1]}, or [rows, columns, 3, H, W] for a sheet of so many rows and columns.
        output: the folder of results.json.
    """
    for name, images in pictures.items():
        columns = COLUMNS if images.ndim == 4 else images.shape[1]
        save_png(grid(images.flatten(0, -4), columns), output / PICTURES / f"{name}.png")


def read_pictures(results: AnyResults, output: Path) -> Pictures:
    """Read what a report shows of the pictures that `save_pictures` saved, and no other picture.

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
        place = without_seed(name)  # a report shows the first seed
        if place not in places and (name in sheets or expected):
            places.add(place)
            chosen[name] = sheets.get(name)
    others = sheets.keys() - dict(drawn).keys()
    chosen |= {name: sheets[name] for name in sorted(others) if name.split("/")[0] not in (COURSE, STRIPS)}
    courses = {}
    if isinstance(results, Results):
        chosen |= {name: sheets.get(name) for name in ("class/base", "class/hardened")}
        courses = {
            name: _cut(sheets[name], columns) for name, columns in course_sheets(results).items() if name in sheets
        }
        shown = {*shown_names(results, list(map(without_seed, chosen)), strips(results, courses))}
        chosen = {name: sheet for name, sheet in chosen.items() if without_seed(name) in shown}
    return {name: [] if sheet is None else as_shown(_cut(sheet)) for name, sheet in chosen.items()} | courses


def save_attack_pictures(
    results: AttackResults, pictures: Mapping[str, Tensor], output: Path
) -> tuple[dict[str, AttackPictures], dict[str, Path]]:
    """Save the pictures of `apdm attack`: after each attack, and of its course, a line for each noise.

    Args:
        pictures: {name: [N, 3, H, W] in [0, 1]}, or [noises, steps, 3, h, w] for the course of an attack.
        output: the folder of attack.json.

    Returns:
        {title of a row: what the page shows of its pictures}, and {name of a sheet: its file}.
    """
    found, sheets = {}, {}

    def save(name: str, sheet: Image.Image) -> Path:
        path = output / PICTURES / f"{name}.png"
        save_png(sheet, path)
        return path

    for row in results.attacks:
        name, folder = picture_name(row, results.attacks[0].spec), attack_folder(row)
        after, course = pictures.get(name), pictures.get(f"{COURSE}/{name}")
        if after is not None:
            sheets[f"{folder}/{AFTER}"] = save(f"{folder}/{AFTER}", grid(after, COLUMNS))
        if course is not None:
            sheets[f"{folder}/{COURSE}"] = save(f"{folder}/{COURSE}", grid(course.flatten(0, 1), course.shape[1]))
        found[title_of(row)] = AttackPictures(
            after=[] if after is None else as_shown(list(map(to_pil, after))),
            course=[] if course is None else [list(map(to_pil, line)) for line in course],
        )
    return found, sheets


def read_attack_pictures(results: AttackResults, output: Path) -> tuple[dict[str, AttackPictures], dict[str, bool]]:
    """Read what `save_attack_pictures` saved.

    Args:
        output: its folder.

    Returns:
        {title of a row: its pictures}, and for each sheet that the attacks gave whether it is at hand.
    """
    folder = output / PICTURES
    sheets = {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_files(folder)}
    pictures, found = {}, {}
    for row in results.attacks:
        after, course = (f"{attack_folder(row)}/{name}" for name in (AFTER, COURSE))
        if row.identity:
            found[after] = as_shown(_cut(sheets[after])) if after in sheets else []
        if row.curve:
            found[course] = _cut(sheets[course], len(row.curve)) if course in sheets else []
        flat, steps = found.get(course, []), len(row.curve)
        lines = [flat[first : first + steps] for first in range(0, len(flat), steps)] if flat else []
        pictures[title_of(row)] = AttackPictures(found.get(after, []), lines)
    return pictures, {name: bool(images) for name, images in found.items()}


def attack_folder(row: AttackRow) -> str:
    """The folder of the sheets of a row of `apdm attack`, among its pictures: AFTER and COURSE."""
    return f"{file_name(row.spec)}/{row.subject}"


def save_strips(results: Results, pictures: Pictures, output: Path) -> None:
    """Save the strip of each attack as a picture of its own, `strips/<attack>.png` among the audit's pictures."""
    for spec, strip in strips(results, pictures).items():
        save_png(strip_image(strip), output / PICTURES / STRIPS / f"{file_name(spec)}.png")


def _drawn(results: AnyResults) -> Iterator[tuple[str, bool]]:
    """The names of the pictures that attacks gave, in the order of the rows, and whether there must be such pictures.

    A failed attack may have given some. Not every model has attention maps.
    """
    layer: ImageLayer | None = results.image_layer
    if not isinstance(results, PhotoResults):
        nominal = results.attacks[0].spec
        for row in results.attacks:
            place = picture_name(row, nominal)
            yield place, bool(row.identity)
            yield f"{ATTENTION}/{place}", False
    for one in layer.attacks if layer is not None else []:
        yield photo_picture_name(one), bool(one.identity)


def _cut(path: Path, columns: int | None = None) -> list[Image.Image]:
    """The pictures of a sheet, row by row. Nothing is returned if the file is no sheet.

    Args:
        path: the sheet.
        columns: its number of columns, if all its places hold pictures. None for COLUMNS columns, where white places at
            the end are gaps.
    """
    try:
        sheet = read_grid(path)
    except (OSError, ValueError, SyntaxError):  # whatever a damaged file makes Pillow raise
        return []
    side = sheet.width // (columns or COLUMNS)
    if not side or sheet.width != side * (columns or COLUMNS) or sheet.height % side:
        return []
    boxes = [
        (left, top, left + side, top + side)
        for top in range(0, sheet.height, side)
        for left in range(0, sheet.width, side)
    ]
    pictures = [sheet.crop(box) for box in boxes]
    while not columns and pictures and len(boxes) - len(pictures) < COLUMNS - 1 and pictures[-1].getextrema() == WHITE:
        del pictures[-1]
    return pictures
