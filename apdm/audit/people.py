"""The people whom an audit attacks, and the folders of their photos.

`apdm audit --subjects DIR` expects these folders in DIR. The option in brackets names another folder instead:

    DIR/attacker/<id>/   photos of the protected people that the attacker trains on     (attack_data_dir)
    DIR/holdout/<id>/    photos of all people, never trained on; they define likeness   (holdout_data_dir)
    DIR/other/<id>/      people who gave consent and must stay learnable; optional      (other_data_dir)
    DIR/strangers/       photos of many other people, loose or one folder each; optional (strangers_data_dir)
    DIR/consenting/<id>/ people whose photos an attacker may train on first; optional

If DIR/attacker does not exist, the attacker has the photos in DIR/<id>/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.data.subjects import find_subjects, list_all_images, list_images, load_images

ATTACKER, HOLDOUT, OTHER, STRANGERS, CONSENTING = "attacker", "holdout", "other", "strangers", "consenting"
PROTECTED = "protected"  # the originals of protected photos, for an audit that attacks these too


@dataclass(frozen=True)
class Person:
    """A person whom attacks try to learn.

    Attributes:
        id: opaque name.
        photos: photos that the attacker trains on, [N, 3, R, R] in [-1, 1].
        references: hold-out photos that define likeness, [M, 3, R, R] in [-1, 1]. They should differ from `photos`,
            because a photo in both sets would make likeness look higher than it is.
    """

    id: str
    photos: Tensor
    references: Tensor


@dataclass(frozen=True)
class AuditSubjects:
    """All people whose photos an audit uses.

    Attributes:
        protected: the people whom the hardened model protects.
        others: people who gave consent and must stay learnable.
        strangers: photos [N, 3, R, R] in [-1, 1] of other people, to measure likeness by chance. If it is None, the
            base's class pictures are used instead.
        consenting: photos [N, 3, R, R] in [-1, 1] of unrelated people, which some attacks train on first.
    """

    protected: list[Person]
    others: list[Person]
    strangers: Tensor | None = None
    consenting: Tensor | None = None


@dataclass(frozen=True)
class PhotoFolders:
    """The folders with the photos; None for a folder that was not given."""

    attack: str | None
    holdout: str | None
    other: str | None = None
    strangers: str | None = None
    consenting: str | None = None

    @staticmethod
    def below(subjects: str, options: AuditOptions) -> PhotoFolders:
        """The folders below `subjects`, or the folders that options name; see the docstring of this module.

        Raises:
            UserError: the folder does not exist.
        """
        root = Path(subjects)
        if not root.is_dir():
            raise UserError(f"folder {subjects} does not exist; give one with {ATTACKER}/ and {HOLDOUT}/ in it")

        def inside(name: str) -> str | None:
            return str(root / name) if (root / name).is_dir() else None

        return PhotoFolders(
            attack=options.attack_data_dir or inside(ATTACKER) or subjects,
            holdout=options.holdout_data_dir or inside(HOLDOUT),
            other=options.other_data_dir or inside(OTHER),
            strangers=options.strangers_data_dir or inside(STRANGERS),
            consenting=inside(CONSENTING),
        )

    def load(self, resolution: int, *, protected: Sequence[str] | None = None, prefix: str = "") -> AuditSubjects:
        """Read all photos.

        Args:
            resolution: R, the side of the squares that are cut out of the photos, in pixels.
            protected: ids of the protected people. None: all people whose photos the attacker has.
            prefix: text before the option names in error messages, such as "audit.".

        Raises:
            UserError: there are no hold-out photos, a person has no photos, or a photo is damaged.
        """
        references = _photos(self.holdout, resolution)
        if not references:
            raise UserError(
                "the audit measures likeness on photos nobody trained on; "
                f"name their folder with {prefix}holdout_data_dir, one sub-folder per subject"
            )
        # The attacker's photos may lie beside the folders of other groups.
        groups = [self.holdout, self.other, self.strangers, self.consenting, f"{self.attack}/{PROTECTED}"]
        attack = _photos(self.attack, resolution, besides=[Path(folder) for folder in groups if folder])
        others = _photos(self.other, resolution)
        protected = list(attack) if protected is None else protected
        unseen = "photos of this person that nobody trains on"
        _require(protected, references, self.holdout, unseen, owner=self.attack)
        _require(list(others), references, self.holdout, unseen, owner=self.other)
        _require(protected, attack, self.attack, "the photos that the attacker has", owner=self.holdout)
        strangers = load_images(list_all_images(self.strangers), resolution) if self.strangers else None
        consenting = list(_photos(self.consenting, resolution).values())
        return AuditSubjects(
            [Person(id=person, photos=attack[person], references=references[person]) for person in protected],
            [Person(id=person, photos=photos, references=references[person]) for person, photos in others.items()],
            strangers,
            torch.cat(consenting) if consenting else None,
        )


def _photos(folder: str | None, resolution: int, *, besides: Sequence[Path] = ()) -> dict[str, Tensor]:
    """{subject's id: photos} of every subject in a folder; empty if `folder` is None. See `find_subjects`."""
    if folder is None:
        return {}
    found = find_subjects(folder, besides=besides)
    return {subject.id: load_images(subject.images, resolution) for subject in found}


def _require(
    people: Sequence[str], known: Mapping[str, Tensor], folder: str | None, content: str, *, owner: str | None
) -> None:
    """Raise UserError if `folder`, with photos of the people `known`, lacks one of the people who are in `owner`."""
    for person in people:
        if person not in known:
            for loose in (place for place in (folder, owner) if place and list_images(place)):
                raise UserError(
                    f"the loose photos in {loose} belong to nobody in {owner if loose == folder else folder}; "
                    f"move them into {loose}/<id>/, with the same id in both"
                )
            raise UserError(f"{folder} has no folder {person}; add one with {content}")
