"""Which of a person's photos are used for what: the sets of Anti-DreamBooth's data, and the photos that are held out.

In the layout of Anti-DreamBooth's data (Le et al. 2023) every person's photos lie in folders set_A, set_B and set_C.

There, A is the reference set, clean photos that a surrogate learns from; B is the target set, whose photos are
protected; C is an extra clean set, to be mixed with protected photos. Each has four photos. Later papers use the sets
otherwise: APDM protects, attacks and measures with A. In this program a set is one of three things, and no set is two
of them unless an option says so: A is protected, the attacker of an audit has B, and C is held out.

Where the photos do not lie in sets and no folder of hold-out photos is given, the last third of each person's photos
is held out, by sorted name. So every process, and every command that reads the same folder, holds out the same photos.

Each command decides in one place whether it holds out the last third, and `Chosen.of` takes it:

apdm harden               `apdm.jobs.hardening.final_audit.learnt_photos`: if its audit or probe has no other photos
apdm audit, apdm attack   `apdm.audit.inputs.people.PhotoFolders.below`: if there is no other folder of hold-out photos
apdm audit, photos alone  `apdm.jobs.photo_audit._read_photos`: likewise, from clean and protected photos
apdm reproduce            `apdm.jobs.reproducing.subjects`: if the data has no sets
apdm perturb              holds out nothing; it protects all photos of the set
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apdm.core.errors import UserError
from apdm.data.photo_files import Listing, list_folder, name_of, walk

Letter = Literal["A", "B", "C", "D"]  # Anti-Diffusion's demonstration has a set D
Part = Literal["all", "kept", "held out"]
NAME = re.compile(r"set[ _-]?([a-d])", re.IGNORECASE)  # set_A, set_a, SET_A, setA
MIN_HELD_OUT, MIN_PHOTOS = 2, 4  # of a person whose last third is held out
LAST_THIRD = f"the last third of each person's photos by name, at least {MIN_HELD_OUT}"  # for messages


@dataclass(frozen=True)
class Chosen:
    """Which of a person's photos to use.

    Attributes:
        letter: the letter of the set, where the photos lie in sets.
        option: the option that chooses the set, for messages.
        part: where they do not lie in sets, all photos, those without the last third, or the last third.
        holdout: the option that names a folder of hold-out photos in place of the last third, for messages.
    """

    letter: Letter = "A"
    option: str = "protected_set"
    part: Part = "all"
    holdout: str = "holdout_data_dir"

    def of(self, photos: Sequence[Path], *, folder: str | Path, subject: str) -> slice:
        """Which of a subject's photos, in the order of their names, are of the chosen part.

        Raises:
            UserError: there are too few photos to hold some out. The message names the folder and the subject.
        """
        if self.part == "all":
            return slice(None)
        number = len(photos)
        if number < MIN_PHOTOS:
            raise UserError(
                f"{folder} has {number} photo{'s' * (number != 1)} of {subject}, too few to hold some out for the "
                f"audit: give at least {MIN_PHOTOS}, or other photos of the person in {self.holdout}"
            )
        kept = number - max(MIN_HELD_OUT, number // 3)
        return slice(kept) if self.part == "kept" else slice(kept, None)


PROTECTED_SET = Chosen()


def letter_of(folder: Path) -> str | None:
    """Return the letter of the set that a folder's name stands for; None if it is no set."""
    found = NAME.fullmatch(folder.name)
    return found[1].upper() if found else None


def sets_in(listing: Listing) -> dict[str, Path]:
    """Return {letter: folder} of the sets with pictures among the folders of a listing.

    Raises:
        UserError: two folders are the same set.
    """
    sets: dict[str, Path] = {}
    for folder in listing.folders:
        letter = letter_of(folder)
        if letter is None or first_with_pictures(folder) is None:
            continue
        if other := sets.get(letter):
            raise UserError(f"{name_of(other)} and {name_of(folder, 1)} are both set {letter}; put them together")
        sets[letter] = folder
    return sets


def has_sets(root: str | Path | None) -> bool:
    """Whether the photos of the people in a folder, or of the one person whose folder it is, lie in sets."""
    if root is None or not Path(root).is_dir():
        return False
    top = list_folder(Path(root))
    return bool(sets_in(top)) or any(sets_in(list_folder(folder)) for folder in top.folders)


def choose(sets: dict[str, Path], chosen: Chosen, *, called: str) -> Path:
    """Return the folder of the chosen set. `called` names the person in messages.

    Raises:
        UserError: the person does not have this set.
    """
    if chosen.letter not in sets:
        there = ", ".join(f"set_{letter}" for letter in sorted(sets))
        raise UserError(
            f"{called} has no photos in set_{chosen.letter}, only in {there}; add some, or choose another set with "
            f"--{chosen.option}"
        )
    return sets[chosen.letter]


def first_with_pictures(folder: Path) -> Path | None:
    """Return the first folder with pictures among this one and those below it."""
    return next((place for place, listing in walk(folder) if listing.photos or listing.unread), None)
