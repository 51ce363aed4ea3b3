"""Writes subject folders of the miniature world: `python -m apdm.portraits.subjects --output_dir DIR`.

DIR/protected/<id>/*.png   photos that the defence sees
DIR/attacker/<id>/*.png    other photos of the same people, for the attack
DIR/other/<id>/*.png       photos of people who must stay learnable, for the same attack
DIR/holdout/<id>/*.png     photos of all of them that nobody trains on: the reference for likeness
DIR/consenting/<id>/*.png  photos of people who agreed to be used in keeping others learnable
DIR/strangers/*.png        one photo each of many more people
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apdm.portraits.drawing import render_person
from apdm.portraits.people import (
    CONSENTING_PEOPLE,
    OTHER_PEOPLE,
    PROTECTED_PEOPLE,
    VERIFICATION_PEOPLE,
    circumstance,
    identity,
)

DEFENCE, ATTACK, HOLDOUT = range(0, 4), range(100, 104), range(200, 212)


def write_photos(seed: int, photos: range, directory: Path, size: int = 64) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos):
        render_person(identity(seed), circumstance(seed, photo), size).save(directory / f"{number:03d}.png")


def write_subjects(
    directory: Path,
    *,
    protected: int = 1,
    others: int = 1,
    consenting: int = 8,
    strangers: int = 64,
    first: int = 0,
) -> None:
    """Fills `directory` as the module's docstring shows; ids are numbers and carry nothing else."""
    for n in range(protected):
        seed = PROTECTED_PEOPLE.start + first + n
        for name, photos in (("protected", DEFENCE), ("attacker", ATTACK), ("holdout", HOLDOUT)):
            write_photos(seed, photos, directory / name / f"s{n + 1:02d}")
    for n in range(others):
        seed = OTHER_PEOPLE.start + first + n
        for name, photos in (("other", ATTACK), ("holdout", HOLDOUT)):
            write_photos(seed, photos, directory / name / f"o{n + 1:02d}")
    for n in range(consenting):
        write_photos(CONSENTING_PEOPLE.start + n, DEFENCE, directory / "consenting" / f"c{n + 1:02d}")
    (directory / "strangers").mkdir(parents=True, exist_ok=True)
    for n in range(strangers):
        # The far end of the verification range: thresholds were set on its beginning.
        seed = VERIFICATION_PEOPLE.stop - 1 - n
        render_person(identity(seed), circumstance(seed, 0)).save(directory / "strangers" / f"{n:03d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--protected", type=int, default=1)
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--consenting", type=int, default=8)
    parser.add_argument("--strangers", type=int, default=64)
    parser.add_argument("--first", type=int, default=0, help="offset into the seed ranges: other people")
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
