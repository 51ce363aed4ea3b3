"""The people whom an audit attacks, and the folders of their photos.

`apdm audit --subjects DIR` expects these folders in DIR. The option in brackets names another folder instead:

    DIR/attacker/<id>/   photos of the protected people that the attacker trains on     (attack_data_dir)
    DIR/holdout/<id>/    photos of all people, never trained on; they define likeness   (holdout_data_dir)
    DIR/other/<id>/      people who gave consent and must stay learnable; optional      (other_data_dir)
    DIR/strangers/       photos of many other people, loose or one folder each; optional (strangers_data_dir)
    DIR/consenting/<id>/ people whose photos an attacker may train on first; optional

If DIR/attacker does not exist, the attacker has the photos in DIR/<id>/. If there the photos of each person lie in sets
(`apdm.data.photo_sets`), one set is the attacker's, and another one is held out. If they do not, and there are no
hold-out photos either, the last third of each person's photos is held out from the attacker.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from apdm.audit.results.common import HeldOutFrom, PhotoCounts
from apdm.config import AuditOptions
from apdm.core.errors import Faults, UserError, each
from apdm.data.photo_captions import Captions
from apdm.data.photo_sets import Chosen, Letter, has_sets
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import ONLY_SUBJECT, Subject, find_subjects, list_all_images, list_images, load_images

ATTACKER, HOLDOUT, OTHER, STRANGERS, CONSENTING = "attacker", "holdout", "other", "strangers", "consenting"
PROTECTED = "protected"  # the originals of protected photos, for an audit that attacks these too


@dataclass(frozen=True)
class Person:
    """A person whom attacks try to learn.

    Attributes:
        id: opaque name.
        photos: photos that the attacker trains on, [N, 3, R, R], uint8.
        references: hold-out photos that define likeness, [M, 3, R, R], uint8. They should differ from `photos`,
            because a photo in both sets would make likeness look higher than it is.
        captions: {column: the caption of each of `photos`} of the columns that attacks train on. They are as sensitive
            as the photos.
    """

    id: str
    photos: Tensor
    references: Tensor
    captions: Captions = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class AuditSubjects:
    """All people whose photos an audit uses.

    Attributes:
        protected: the people whom the hardened model protects.
        others: people who gave consent and must stay learnable.
        strangers: photos [N, 3, R, R], uint8, of other people, to measure likeness by chance. If it is None, the
            base's class pictures are used instead.
        consenting: photos [N, 3, R, R], uint8, of unrelated people, which some attacks train on first.
        sets: all these photos, to be compared with those of other folders.
        held_out_from: "originals" if the last third of each person's photos is held out; "folder" if the hold-out
            photos are in a folder of their own.
        left_out: whether the hardened model says that its hardening left out the last third of each person's photos.
    """

    protected: list[Person]
    others: list[Person]
    strangers: Tensor | None = None
    consenting: Tensor | None = None
    sets: Sequence[PhotoSet] = ()
    held_out_from: HeldOutFrom = "folder"
    left_out: bool = False

    @property
    def mean_photos(self) -> float:
        """How many photos the attacker has of a protected person, on average."""
        return fmean(len(person.photos) for person in self.protected)

    def files(self, *roles: Role) -> dict[str, list[Path]]:
        """{person: files of the photos} of all people in these roles."""
        found: dict[str, list[Path]] = {}
        for group in self.sets:
            if group.role in roles:
                found |= {one: files for one, (files, _) in zip(group.ids, group.by_person, strict=True)}
        return found

    @property
    def captions(self) -> list[Captions]:
        """The captions of each person who has some."""
        return [person.captions for person in [*self.protected, *self.others] if person.captions]

    @property
    def counts(self) -> PhotoCounts:
        """How many photos of each protected person are used for what."""
        return PhotoCounts(
            attacked={person.id: len(person.photos) for person in self.protected},
            held_out={person.id: len(person.references) for person in self.protected},
            held_out_from=self.held_out_from,
            left_out=self.left_out,
        )


@dataclass(frozen=True)
class PhotoFolders:
    """The folders with the photos; None for a folder that was not given.

    Attributes:
        attack: photos that the attacker trains on.
        holdout: photos that define likeness.
        other: photos of people who gave consent and must stay learnable.
        strangers: photos of other people.
        consenting: photos of people whom an attacker may train on first.
        last_third: only the last third of each person's photos in `holdout` is held out. The attacker has the others,
            if `attack` is the same folder. The photos in `other` are divided in the same way.
    """

    attack: str
    holdout: str
    other: str | None = None
    strangers: str | None = None
    consenting: str | None = None
    last_third: bool = False

    @property
    def by_group(self) -> dict[str, str]:
        """{group of photos: its folder} of the folders that are given."""
        names = ("attack", "holdout", "other", "strangers", "consenting")
        return {name: folder for name in names if (folder := getattr(self, name)) is not None}

    @staticmethod
    def below(subjects: str, options: AuditOptions) -> PhotoFolders:
        """The folders below `subjects`, or the folders that options name; see the docstring of this module."""
        root = Path(subjects)

        def inside(name: str) -> str | None:
            return str(root / name) if os.path.isdir(root / name) else None

        attack = options.attack_data_dir or inside(ATTACKER) or subjects
        holdout = options.holdout_data_dir or inside(HOLDOUT)
        return PhotoFolders(
            attack=attack,
            holdout=holdout or attack,
            last_third=holdout is None and not has_sets(attack),
            other=options.other_data_dir or inside(OTHER),
            strangers=options.strangers_data_dir or inside(STRANGERS),
            consenting=inside(CONSENTING),
        )

    def load(
        self,
        resolution: int,
        *,
        protected: Sequence[str] | None = None,
        prefix: str = "",
        attacker_set: Letter = "B",
        holdout_set: Letter = "C",
    ) -> AuditSubjects:
        """Read all photos.

        Args:
            resolution: R, the side of the squares that are cut out of the photos, in pixels.
            protected: ids of the protected people. None: all people whose photos the attacker has.
            prefix: text before the option names in error messages, such as "audit.".
            attacker_set: which photos attackers train on, where those of each person lie in sets.
            holdout_set: which photos are held out, where those of each person lie in sets.

        Raises:
            UserError: a person has no photos or too few to hold some out, or a photo is damaged.
        """
        whole = trained = Chosen(attacker_set, f"{prefix}attacker_set")
        held = Chosen(holdout_set, f"{prefix}holdout_set")
        if self.last_third:
            option = f"{prefix}holdout_data_dir"
            trained, held = replace(whole, part="kept", holdout=option), replace(held, part="held out", holdout=option)
        one_folder = self.attack == self.holdout
        own = trained if one_folder else whole
        # The attacker's photos may lie beside the folders of other groups.
        groups = [self.holdout, self.other, self.strangers, self.consenting, f"{self.attack}/{PROTECTED}"]
        besides = [Path(folder) for folder in groups if folder]
        with Faults() as faults:
            attack = faults.of(lambda: People.load(self.attack, resolution, own, besides=besides))
            holdout = faults.of(
                lambda: People.load(self.holdout, resolution, held, besides=besides if one_folder else ())
            )
            other = faults.of(lambda: People.load(self.other, resolution, trained))
            consenting = faults.of(lambda: People.load(self.consenting, resolution, whole))
            other_holdout = holdout
            if self.last_third or has_sets(self.other):
                other_holdout = faults.of(lambda: People.load(self.other, resolution, held))
            strangers = faults.of(lambda: load_strangers(self.strangers, resolution))
        ids = list(attack.photos) if protected is None else protected
        unseen = "photos of this person that nobody trains on"
        holdout.require(ids, unseen, owner=self.attack)
        other_holdout.require(other.photos, unseen, owner=self.other)
        attack.require(ids, "the photos that the attacker has", owner=self.holdout)
        return AuditSubjects(
            attack.persons(ids, holdout),
            other.persons(other.photos, other_holdout),
            strangers[0].images[0] if strangers else None,
            torch.cat(list(consenting.photos.values())) if consenting.photos else None,
            held_out_from="originals" if self.last_third else "folder",
            sets=[
                *attack.sets(Role.PROTECTED, ids),
                *holdout.sets(Role.REFERENCE, ids),
                *other.sets(Role.OTHER, other.photos),
                *other_holdout.sets(Role.OTHER_REFERENCE, other.photos),
                *consenting.sets(Role.CONSENTING, consenting.photos),
                *strangers,
            ],
        )


@dataclass(frozen=True)
class People:
    """The people of a folder, which is None if it was not given.

    Attributes:
        folder: the folder.
        subjects: the people with the files of their photos.
        photos: {person: photos [N, 3, R, R], uint8}.
    """

    folder: str | None
    subjects: Sequence[Subject]
    photos: Mapping[str, Tensor]

    @staticmethod
    def load(folder: str | None, resolution: int, chosen: Chosen, *, besides: Sequence[Path] = ()) -> People:
        """Read the photos of every person in a folder, as squares with a side of `resolution` pixels.

        `chosen` is the set to use where photos lie in sets, and `besides` are folders that are no people; see
        `find_subjects`.
        """
        subjects = find_subjects(folder, besides=besides, chosen=chosen) if folder is not None else []
        photos = each(subjects, lambda one: load_images(one.images, resolution))
        return People(folder, subjects, {one.id: own for one, own in zip(subjects, photos, strict=True)})

    def require(self, people: Iterable[str], content: str, *, owner: str | None) -> None:
        """Raise UserError if one of the people in the folder `owner` is not here. `content` is what has to be added."""
        person = next((one for one in people if one not in self.photos), None)
        if person is None:
            return
        for loose, other in ((self.folder, owner), (owner, self.folder)):
            if loose and list_images(loose):
                raise UserError(
                    f"the loose photos in {loose} belong to nobody in {other}; move them into {loose}/<id>/, with the "
                    "same id in both"
                )
        note = f" ({ONLY_SUBJECT} stands for loose photos)" if person == ONLY_SUBJECT else ""
        raise UserError(f"{self.folder} has no folder {person}{note}; add one with {content}")

    def persons(self, ids: Iterable[str], holdout: People) -> list[Person]:
        """These people with the photos that the attacker has from here, and the hold-out photos of another folder."""
        return [Person(id=one, photos=self.photos[one], references=holdout.photos[one]) for one in ids]

    def sets(self, role: Role, chosen: Collection[str]) -> list[PhotoSet]:
        """The photos of the people `chosen`, in a list of one, which is empty if none of them is here."""
        subjects = [subject for subject in self.subjects if subject.id in chosen]
        return [PhotoSet.of_people(role, str(self.folder), subjects, self.photos)] if subjects else []


def load_strangers(folder: str | None, resolution: int) -> list[PhotoSet]:
    """The photos of strangers, in a list of one, which is empty if there is no such folder."""
    if not folder:
        return []
    files = list_all_images(folder)
    return [PhotoSet.of(Role.STRANGER, folder, files, load_images(files, resolution))]
