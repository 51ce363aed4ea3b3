"""A caption for each photo of a person, as trainers with captions read them.

    <id>/metadata.jsonl   a line for each photo, {"file_name": "1.jpg", "text": "a photo of sks person, smiling"}, as in
                          the imagefolder of `datasets`; or metadata.csv with these columns
    <id>/1.txt            the caption of <id>/1.jpg, as kohya's scripts read it

The files lie beside the photos. A column is named as in diffusers' scripts, "text". A name with a dot before it, ".txt"
or ".caption", stands for files of that suffix. So it is always said which of the two counts, where both are there.

Captions say how somebody looks. No message shows one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from apdm.core.errors import UserError
from apdm.data.photo_files import name_of, name_some, printable
from apdm.data.tables import TABLES, read_rows, read_text

SUFFIXES = (".txt", ".caption")  # of files that trainers write captions into
Captions = Mapping[str, Sequence[str]]  # {column: a caption of each photo of a person}


def read_captions(photos: Sequence[Path], column: str) -> list[str]:
    """Return the caption of each photo.

    Args:
        photos: files of photos, all in one folder. Rows and files for other photos are passed over.
        column: a column of the table, or a suffix such as ".txt".

    Raises:
        UserError: there is no table or no such column, the table cannot be read or names a photo twice, or a photo has
            no caption or an empty one.
    """
    found = _in_files(photos, column) if column.startswith(".") else _in_table(photos, column)
    if empty := [photo for photo, caption in zip(photos, found, strict=True) if not caption]:
        raise UserError(f"caption_column={column}: the caption of {name_some(empty)} is empty; write one")
    return found


def has_captions(photos: Sequence[Path], column: str) -> bool:
    """Whether somebody wrote captions for photos: a table that has this column, or a text file for one of them.

    Args:
        photos, column: as in `read_captions`.

    Raises:
        UserError: the table cannot be read.
    """
    if column.startswith("."):
        return any(photo.with_suffix(column).is_file() for photo in photos)
    file = _table(photos[0].parent)
    return file is not None and any(column in row for row in read_rows(file))


def caption_files(columns: Collection[str]) -> list[str]:
    """What the names of the files end with that captions of some columns are read from."""
    names = {name for column in columns for name in ([column] if column.startswith(".") else TABLES)}
    return sorted(names)


def all_captions(photos: Sequence[Path]) -> list[str]:
    """Return every text that is written for photos beside them, in any column of a table or in a text file.

    Raises:
        UserError: a file cannot be read.
    """
    tables = {photo.parent / name for photo in photos for name in TABLES}
    rows = [row for file in sorted(tables) if file.is_file() for row in read_rows(file)]
    found = [cell for row in rows for name, cell in row.items() if name != "file_name" and isinstance(cell, str)]
    files = {photo.with_suffix(suffix) for photo in photos for suffix in SUFFIXES}
    found += [read_text(file) for file in sorted(files) if file.is_file()]
    return sorted({_one_line(text) for text in found} - {""})


def _in_files(photos: Sequence[Path], suffix: str) -> list[str]:
    files = {photo: photo.with_suffix(suffix) for photo in photos}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise UserError(f"caption_column={suffix}: there is no {name_some(missing)}; write the caption of each photo")
    return [_one_line(read_text(file)) for file in files.values()]


def _in_table(photos: Sequence[Path], column: str) -> list[str]:
    folder = photos[0].parent
    file = _table(folder)
    if file is None:
        raise UserError(
            f"caption_column={column}: there is no {name_of(folder / TABLES[0])}; write a line for each photo, "
            f'{{"file_name": "{printable(photos[0].name)}", "{column}": "..."}}, or give .txt for a file beside each'
        )
    rows, called = read_rows(file), f"caption_column={column}: {name_of(file)}"
    if not any(column in row for row in rows):
        others = sorted({name for row in rows for name in row} - {"file_name"})
        raise UserError(f"{called} has no column {column}; it has {', '.join(others) or 'none'}")
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        photo, caption = row.get("file_name"), row.get(column)
        if not isinstance(photo, str) or not Path(photo).name:
            raise UserError(f"{called}, row {number}: it needs a file_name, the name of a photo")
        if not isinstance(caption, str | None):
            raise UserError(f"{called}, row {number}: {column} is no text; write the caption in quotes")
        if caption is None:
            continue
        name = _plain(Path(photo).as_posix())
        if captions.setdefault(name, _one_line(caption)) != _one_line(caption):
            raise UserError(f"{called}, row {number}: this photo has another caption already; leave one of them out")
    if missing := [photo for photo in photos if _plain(photo.name) not in captions]:
        raise UserError(f"{called} has no caption for {name_some(missing)}; add a row with this file_name")
    return [captions[_plain(photo.name)] for photo in photos]


def _table(folder: Path) -> Path | None:
    """The table of a folder; None if there is none."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def _plain(name: str) -> str:
    """A file's name in the form in which names are compared: systems write the same letter in different ways."""
    return unicodedata.normalize("NFC", name)
