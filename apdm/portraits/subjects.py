"""Writes photos of people of the miniature world: `python -m apdm.portraits.subjects --output_dir DIR`.

DIR/protected/<id>/*.png   photos of the protected people, for the defence
DIR/attacker/<id>/*.png    other photos of the same people, for the attacker; metadata.jsonl has their captions
DIR/other/<id>/*.png       photos of people who must stay learnable, for the same attack; with captions too
DIR/holdout/<id>/*.png     photos of all of these that nobody trains on, the reference for likeness
DIR/consenting/<id>/*.png  photos of people who consent, for keeping others learnable
DIR/strangers/*.png        one photo of each of many other people
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from apdm.portraits.captions import looks, scene
from apdm.portraits.drawing import SIZE, render_person
from apdm.portraits.people import (
    CONSENTING_PEOPLE,
    OTHER_PEOPLE,
    PROTECTED_PEOPLE,
    VERIFICATION_PEOPLE,
    circumstance,
    identity,
)

PROMPT = "a photo of t@t person"  # with which captions begin: the instance prompt of audit-portrait.yaml
DEFENCE, ATTACK, HOLDOUT = range(0, 4), range(100, 104), range(200, 212)  # numbers of a person's photos
CONSENTING, STRANGERS = 8, 64  # how many there are by default


def write_photos(seed: int, photos: range, directory: Path, size: int = SIZE) -> None:
    """Write photos of one person as <number>.png.

    Args:
        seed: the person.
        photos: numbers of the photos. Each number stands for other circumstances.
        directory: the folder, which is created.
        size: side of the photos in pixels.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos):
        render_person(identity(seed), circumstance(seed, photo), size).save(directory / f"{number:03d}.png")


def write_captions(seed: int, photos: range, directory: Path) -> None:
    """Write metadata.jsonl with a caption of each photo of `write_photos`: what an attacker sees on it."""
    person = f"{PROMPT} {looks(identity(seed))}"
    captions = [f"{person} {scene(circumstance(seed, photo))}" for photo in photos]
    lines = [json.dumps({"file_name": f"{n:03d}.png", "text": text}) for n, text in enumerate(captions)]
    (directory / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_subjects(
    directory: Path,
    *,
    protected: int = 1,
    others: int = 1,
    consenting: int = CONSENTING,
    strangers: int = STRANGERS,
    first: int = 0,
) -> None:
    """Write all folders that the module's docstring lists. Ids are a letter and a number.

    Args:
        protected: how many protected people.
        others: how many people who must stay learnable.
        consenting: how many people who consent.
        strangers: how many strangers.
        first: skip this many protected people and others, so as to get different ones.
    """
    for n in range(protected):
        seed = PROTECTED_PEOPLE.start + first + n
        for name, photos in (("protected", DEFENCE), ("attacker", ATTACK), ("holdout", HOLDOUT)):
            write_photos(seed, photos, directory / name / f"s{n + 1:02d}")
        write_captions(seed, ATTACK, directory / "attacker" / f"s{n + 1:02d}")
    for n in range(others):
        seed = OTHER_PEOPLE.start + first + n
        for name, photos in (("other", ATTACK), ("holdout", HOLDOUT)):
            write_photos(seed, photos, directory / name / f"o{n + 1:02d}")
        write_captions(seed, ATTACK, directory / "other" / f"o{n + 1:02d}")
    for n in range(consenting):
        write_photos(CONSENTING_PEOPLE.start + n, DEFENCE, directory / "consenting" / f"c{n + 1:02d}")
    (directory / "strangers").mkdir(parents=True, exist_ok=True)
    for n in range(strangers):
        # Strangers come from the end of the range, because thresholds were measured on its beginning.
        seed = VERIFICATION_PEOPLE.stop - 1 - n
        render_person(identity(seed), circumstance(seed, 0)).save(directory / "strangers" / f"{n:03d}.png")


def subject_files() -> frozenset[str]:
    """Return the names of all files that `write_subjects` writes by default, relative to its folder."""
    folders = {"protected/s01": DEFENCE, "attacker/s01": ATTACK, "other/o01": ATTACK}
    folders |= {"holdout/s01": HOLDOUT, "holdout/o01": HOLDOUT, "strangers": range(STRANGERS)}
    folders |= {f"consenting/c{n + 1:02d}": DEFENCE for n in range(CONSENTING)}
    photos = {f"{folder}/{i:03d}.png" for folder, photos in folders.items() for i in range(len(photos))}
    return frozenset(photos | {f"{folder}/metadata.jsonl" for folder in ("attacker/s01", "other/o01")})


def main() -> None:
    """Write subjects as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--protected", type=int, default=1)
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--consenting", type=int, default=CONSENTING)
    parser.add_argument("--strangers", type=int, default=STRANGERS)
    parser.add_argument("--first", type=int, default=0, help="how many people to skip, so as to get different ones")
    arguments = parser.parse_args()
    write_subjects(
        arguments.output_dir,
        protected=arguments.protected,
        others=arguments.others,
        consenting=arguments.consenting,
        strangers=arguments.strangers,
        first=arguments.first,
    )


if __name__ == "__main__":
    main()
