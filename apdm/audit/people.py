"""Who is attacked, with which photos, and by what likeness is known.

`--subjects DIR` has these folders in it; each can be named apart by the option in brackets, which then wins:

    DIR/attacker/<id>/   the protected: photos that the attacker trains on          (attack_data_dir)
    DIR/holdout/<id>/    everybody: photos that neither defence nor attacker sees   (holdout_data_dir)
    DIR/other/<id>/      people who gave consent and must stay learnable; optional  (other_data_dir)
    DIR/strangers/       one photo each of anybody else; optional                   (strangers_data_dir)
    DIR/consenting/<id>/ people whose photos an attacker may train on first; optional

Without DIR/attacker, DIR itself is a folder of subjects, DIR/<id>/, whose photos the attacker has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.data.subjects import find_subjects, list_images, load_images

ATTACKER, HOLDOUT, OTHER, STRANGERS, CONSENTING = "attacker", "holdout", "other", "strangers", "consenting"


@dataclass(frozen=True)
class Person:
    """Someone to be learned: the attacker's `photos` [N, 3, R, R] and the `references` [M, 3, R, R] that
    define likeness, both in [-1, 1]. References that the attacker trains on make likeness look higher than
    it is."""

    id: str
    photos: Tensor
    references: Tensor


@dataclass(frozen=True)
class People:
    """Everybody an audit needs; strangers and consenting [N, 3, R, R] in [-1, 1]."""

    subjects: list[Person]
    others: list[Person]
    strangers: Tensor | None = None
    consenting: Tensor | None = None


@dataclass(frozen=True)
class Folders:
    """Where the photos are; None where there are none."""

    attack: str | None
    holdout: str | None
    other: str | None = None
    strangers: str | None = None
    consenting: str | None = None

    @staticmethod
    def below(subjects: str, options: AuditOptions) -> Folders:
        """What `--subjects` and the options of single folders name, as the module's text says."""
        root = Path(subjects)
        if not root.is_dir():
            raise UserError(f"folder {subjects} does not exist; give one with {ATTACKER}/ and {HOLDOUT}/ in it")

        def inside(name: str) -> str | None:
            return str(root / name) if (root / name).is_dir() else None

        return Folders(
            attack=options.attack_data_dir or inside(ATTACKER) or subjects,
            holdout=options.holdout_data_dir or inside(HOLDOUT),
            other=options.other_data_dir or inside(OTHER),
            strangers=options.strangers_data_dir or inside(STRANGERS),
            consenting=inside(CONSENTING),
        )

    def load(self, resolution: int, *, protected: Sequence[str] | None = None, prefix: str = "") -> People:
        """Read every photo. protected: ids; default: all of the attacker's.

        Raises:
            UserError: no held-out photos, somebody without some, damaged photos; prefix is of the options it names.
        """
        references = _photos(self.holdout, resolution)
        if not references:
            raise UserError(
                "the audit measures likeness on photos nobody trained on; "
                f"name their folder with {prefix}holdout_data_dir, one sub-folder per subject"
            )
        attack, others = _photos(self.attack, resolution), _photos(self.other, resolution)
        protected = list(attack) if protected is None else protected
        for person in (*protected, *others):
            if person not in references:
                raise UserError(f"{self.holdout} has no folder {person} with photos to measure likeness on")
        for person in protected:
            if person not in attack:
                raise UserError(f"{self.attack} has no folder {person} with photos to attack with")
        strangers = load_images(list_images(self.strangers), resolution) if self.strangers else None
        consenting = list(_photos(self.consenting, resolution).values())
        return People(
            [Person(id=person, photos=attack[person], references=references[person]) for person in protected],
            [Person(id=person, photos=photos, references=references[person]) for person, photos in others.items()],
            strangers,
            torch.cat(consenting) if consenting else None,
        )


def _photos(folder: str | None, resolution: int) -> dict[str, Tensor]:
    """Subject id -> photos, of every subject in a folder; nobody where no folder is named."""
    if folder is None:
        return {}
    return {subject.id: load_images(subject.images, resolution) for subject in find_subjects(folder)}
