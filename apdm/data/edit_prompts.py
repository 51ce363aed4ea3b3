"""Prompts for the editing of photos: what is asked of each photo, and perhaps what it shows.

They lie beside the photos. Two layouts are understood, below a folder or in the folder of each subject:

    <id>/prompt.txt      one prompt for all photos of a subject, as in Defense-Edit
    metadata.jsonl       a line for each photo, as in the imagefolder of `datasets`: {"file_name": "<id>/01.jpg",
                         "prompt": "...", "source_prompt": "..."}; or metadata.csv with these columns
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apdm.core.errors import UserError
from apdm.data.tables import TABLES, read_rows, read_text

PROMPT = "prompt.txt"


@dataclass(frozen=True)
class Edit:
    """What is asked of one photo.

    Attributes:
        prompt: what the edited picture should show.
        source: what the photo shows; empty if nobody said.
    """

    prompt: str
    source: str = ""


@dataclass(frozen=True)
class _Row:
    """A row of a table: the edit, the name of the photo's file, and the table and number for messages."""

    edit: Edit
    photo: str
    where: str


def read_edits(folder: str | Path, photos: Mapping[str, Sequence[Path]]) -> dict[str, list[Edit]]:
    """Find the prompt of each photo.

    Args:
        folder: the folder with the prompts.
        photos: {subject: files of the subject's photos}. They may lie elsewhere and have another suffix.

    Returns:
        {subject: one edit for each photo}.

    Raises:
        UserError: there are no prompts in the folder, a file of them cannot be read, or a photo has none. Or a row
            names a photo that is nowhere, and a photo without a row has the prompt of its folder, so that the row may
            be meant for it. Or a folder of prompts is for somebody who has no photos anywhere, and a photo has the
            prompt of `folder` itself.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"edit_prompts: {root} is no folder; name the folder with <id>/{PROMPT} or {TABLES[0]}")
    tables = _tables(root, "")
    rows, found = dict(tables), dict[str, list[Edit]]()
    without_row = set[str]()  # subjects who have a photo without a row, which takes the prompt of a folder
    for subject, files in photos.items():
        own = {**tables, **_tables(root / subject, f"{subject}/")}
        rows |= own
        whole = next((_whole(place) for place in (root / subject / PROMPT, root / PROMPT) if place.is_file()), None)
        found[subject] = []
        for file in files:
            row = own.get(f"{subject}/{file.stem}", own.get(file.stem))
            edit = whole if row is None else row.edit
            if edit is None:
                raise UserError(
                    f"edit_prompts: {root} has no prompt for {subject}/{file.name}; add {subject}/{PROMPT}, or a line "
                    f"with this file_name to {TABLES[0]}"
                )
            if row is None:
                without_row.add(subject)
            found[subject].append(edit)
    if without_row:
        _check_rows(rows, root, photos)
    if any(not (root / subject / PROMPT).is_file() for subject in without_row):
        _check_folders(root, photos)
    return found


def _check_rows(rows: Mapping[str, _Row], root: Path, photos: Mapping[str, Sequence[Path]]) -> None:
    """Raise UserError if a row names a photo that is nowhere. `rows` are {name of the photo's file: row}."""
    paths = [(subject, file) for subject, files in photos.items() for file in files]
    known = {name for subject, file in paths for name in (f"{subject}/{file.stem}", file.stem)}
    for place, row in rows.items():
        if place not in known and not _lies_somewhere(place, root, [file for _, file in paths]):
            raise UserError(f"{row.where}: there is no photo {row.photo}; mend its name, or leave the row out")


def _check_folders(root: Path, photos: Mapping[str, Sequence[Path]]) -> None:
    """Raise UserError if a folder below `root` has prompts, and nobody whose photos lie anywhere has its name."""
    beside = {root, *(folder for files in photos.values() for photo in files for folder in list(photo.parents)[1:3])}
    for folder in sorted(root.iterdir()):
        given = [name for name in (PROMPT, *TABLES) if (folder / name).is_file()]
        if given and folder.name not in photos and not any(_holds_files(place / folder.name) for place in beside):
            raise UserError(
                f"{folder / given[0]}: there are no photos of {folder.name}; mend the folder's name, or leave it out"
            )


def _holds_files(folder: Path) -> bool:
    """Whether files besides prompts lie in a folder or in one in it, such as a set of its subject."""
    files = (file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file())
    return any(file.name not in (PROMPT, *TABLES) and not file.name.startswith(".") for file in files)


def write_edits(folder: Path, names: Sequence[str], edits: Sequence[Edit]) -> None:
    """Write what is asked of each photo of a folder as a table, which `read_edits` reads."""
    rows = [
        {"file_name": name, "prompt": edit.prompt, "source_prompt": edit.source}
        for name, edit in zip(names, edits, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / TABLES[0]).write_text(text, encoding="utf-8")


def _whole(file: Path) -> Edit:
    text = " ".join(read_text(file).split())
    if not text:
        raise UserError(f"{file} is empty; write the prompt of the photos beside it")
    return Edit(text)


def _lies_somewhere(place: str, root: Path, photos: Sequence[Path]) -> bool:
    """Whether a file of this name lies beside the prompts or the photos, perhaps in a set of its subject.

    Args:
        place: the name without suffix, with the subject before it if it has one.
        root: the folder of the prompts.
        photos: the photos, each in its subject's folder or in a set there.
    """
    subject, wanted = Path(place).parent, Path(place).name
    above, patterns = (slice(1, 3), ("*", "*/*")) if subject.name else (slice(1), ("*",))
    folders = {root, *(folder for photo in photos for folder in list(photo.parents)[above])}
    files = (file for folder in folders for pattern in patterns for file in (folder / subject).glob(pattern))
    return any(file.stem == wanted and file.is_file() for file in files)


def _tables(folder: Path, prefix: str) -> dict[str, _Row]:
    """{file name without suffix: row} of the tables in a folder. `prefix` comes before the names."""
    rows: dict[str, _Row] = {}
    for name in TABLES:
        if (file := folder / name).is_file():
            for number, cells in enumerate(read_rows(file), 1):
                texts = [cells.get("file_name"), cells.get("prompt"), cells.get("source_prompt") or ""]
                photo, prompt, source = (str(text).strip() for text in texts)
                if not all(isinstance(text, str) for text in texts) or not photo or not prompt:
                    raise UserError(f"{file}, row {number}: it needs file_name and prompt, and may have source_prompt")
                if not Path(photo).name:
                    raise UserError(f"{file}, row {number}: file_name is {photo!r}; name the file of a photo")
                place = f"{prefix}{Path(photo).with_suffix('').as_posix()}"
                row = _Row(Edit(prompt, source), photo, f"{file}, row {number}")
                if rows.setdefault(place, row).edit != row.edit:
                    raise UserError(f"{row.where}: {photo} has another prompt already; leave one of them out")
    return rows
