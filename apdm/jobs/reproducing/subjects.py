"""Whose photos a table is about: found in a folder, or drawn on the miniature world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import write_beside
from apdm.data.edit_prompts import Edit, read_edits
from apdm.data.photo_sets import Chosen, Letter, Part, has_sets
from apdm.data.subjects import find_subjects
from apdm.jobs.reproducing.recipes import Kind, Recipe
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import write_photos, write_subjects

PHOTOS, HOLDOUT, SPARE = "photos", "holdout", "spare"
DRAWN_GROUPS = ("protected", "other")
HELD_OUT_SET: Letter = "C"
PROTECTED_SET: Letter = "A"
CLEAN_SETS: tuple[Letter] = ("B",)  # where no attacker has it
SPARE_SETS: tuple[Letter, Letter] = ("B", "D")
PARTS: tuple[Part, Part] = ("kept", "held out")
SEEN = 4  # photos of each subject that are protected where others are kept for the attacker
SPARE_DRAWN = range(300, 312)  # numbers of drawn photos for the attacker alone


@dataclass(frozen=True)
class Subject:
    """A subject of a table.

    Attributes:
        id: the name of the subject's folder.
        photos: the photos that are protected and attacked.
        holdout: the photos that likeness is measured against.
        spare: further photos, which only an attacker has.
        clean: further photos, which surrogates of photo protections may learn, and no attacker has.
        kind: the recipe's name for what the subject is; None where it names no kinds.
        edits: what is asked of each of `photos`; empty where the recipe says what is asked.
    """

    id: str
    photos: list[Path]
    holdout: list[Path]
    spare: list[Path] = field(default_factory=list)
    clean: list[Path] = field(default_factory=list)
    kind: str | None = None
    edits: list[Edit] = field(default_factory=list)


def draw_people(folder: Path, count: int) -> None:
    """Draw so many people of the miniature world, unless they are there. Those who are there stay as they are."""
    if not (folder / SPARE / f"s{count:02d}").is_dir():
        with write_beside(folder, folder=True) as partial:
            write_subjects(partial, protected=count, others=1)
            for n in range(count):
                write_photos(PROTECTED_PEOPLE.start + n, SPARE_DRAWN, partial / SPARE / f"s{n + 1:02d}")


def read_subjects(data: str, recipe: Recipe, count: int | None) -> list[Subject]:
    """Find the subjects and their photos.

    Args:
        data: the folder; see `apdm reproduce --help`.
        count: only the first so many, of each kind where the recipe names kinds.

    Raises:
        UserError: there are no photos, or too few to hold some out, or no subjects of a kind.
    """
    if recipe.is_miniature:
        found = _drawn(Path(data), recipe)
    elif recipe.likeness_to == "originals" and not has_sets(data):  # one photo of each is enough
        found = [Subject(one.id, one.images, one.images) for one in find_subjects(data)]
    else:
        found = _found(data, with_spare=recipe.uses_spare)
    if recipe.likeness_to == "originals":
        found = [replace(one, holdout=one.photos) for one in found]
    if recipe.edits:
        edits = read_edits(data, {one.id: one.photos for one in found})
        found = [replace(one, edits=edits[one.id]) for one in found]
    if not recipe.kinds:
        if count is not None and count > len(found):
            raise UserError(f"people is {count}, and {data} has {len(found)}; lower it, or give more photos")
        return found[:count]
    chosen = [one for name, kind in recipe.kinds.items() for one in _of_kind(found, name, kind, data)[:count]]
    kinds: dict[str, str | None] = {}
    for one in chosen:
        if (other := kinds.setdefault(one.id, one.kind)) != one.kind:
            raise UserError(
                f"{one.id} in {data} is of two kinds, {other} and {one.kind}; name the folders of each kind"
            )
    return chosen


def _of_kind(subjects: Sequence[Subject], name: str, kind: Kind, data: str) -> list[Subject]:
    chosen = [replace(one, kind=name) for one in subjects if not kind.folders or one.id in kind.folders]
    if not chosen:
        raise UserError(f"{data} has no folder {' or '.join(kind.folders)}, which the table needs for {name}; add it")
    return chosen


def _drawn(folder: Path, recipe: Recipe) -> list[Subject]:
    held = {one.id: one.images for one in find_subjects(folder / HOLDOUT)}
    groups = DRAWN_GROUPS if recipe.kinds else DRAWN_GROUPS[:1]
    spare = {one.id: one.images for one in find_subjects(folder / SPARE)} if recipe.uses_spare else {}
    clean = {one.id: one.images for one in find_subjects(folder / "attacker")}
    return [
        Subject(one.id, one.images, held[one.id], spare.get(one.id, []), clean.get(one.id, []))
        for group in groups
        for one in find_subjects(folder / group)
    ]


def _found(data: str, *, with_spare: bool) -> list[Subject]:
    spare: dict[str, list[Path]] = {}
    clean: dict[str, list[Path]] = {}
    if has_sets(data):
        photos = find_subjects(data, chosen=Chosen(PROTECTED_SET))
        holdout = find_subjects(data, chosen=Chosen(HELD_OUT_SET))
        if with_spare:
            spare = _sets(data, SPARE_SETS)
        else:
            clean = _sets(data, CLEAN_SETS)
    else:
        photos, holdout = (find_subjects(data, chosen=Chosen(part=part)) for part in PARTS)
    held = {one.id: one.images for one in holdout}
    subjects = [
        Subject(one.id, one.images, held[one.id], spare.get(one.id, []), clean.get(one.id, [])) for one in photos
    ]
    if not with_spare or has_sets(data):
        return subjects
    return [replace(one, photos=one.photos[:SEEN], spare=one.photos[SEEN:]) for one in subjects]


def _sets(data: str, letters: Sequence[Letter]) -> dict[str, list[Path]]:
    """{subject: photos} of some sets, as far as there are such sets."""
    spare: dict[str, list[Path]] = {}
    for letter in letters:
        try:
            found = find_subjects(data, chosen=Chosen(letter))
        except UserError:  # a subject does not have this set
            continue
        for one in found:
            spare.setdefault(one.id, []).extend(one.images)
    return spare


def too_few_spare(subjects: Sequence[Subject], unseen: int) -> str | None:
    """Say who has fewer than `unseen` photos that only the attacker has; None if nobody."""
    short = next((one for one in subjects if len(one.spare) < unseen), None)
    if short is None:
        return None
    return f"{unseen} photos of each subject besides those that are protected and held out; {short.id} has " + str(
        len(short.spare)
    )


def mixed(originals: Sequence[Path], protected: Sequence[Path], clean: int | str) -> list[Path]:
    """Return the attacker's photos, of which the first `clean` by name are not protected; "N-1": all but one."""
    number = len(originals) - 1 if clean == "N-1" else int(clean)
    return [*originals[:number], *protected[number:]]
