"""The part of the input of `apdm harden` that can be read without the models: photos, judges and face networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

from torch import Tensor

from apdm.attacks.registry import make_purifier
from apdm.audit.inputs.face_checks import check_faces
from apdm.audit.results.store import tensor_hash
from apdm.config import HardenConfig
from apdm.config.prompts import prompts_without_identifier
from apdm.core.errors import Faults, each
from apdm.core.logging import get_logger
from apdm.data.photo_captions import read_captions
from apdm.data.photo_sets import PROTECTED_SET, Chosen
from apdm.data.separate_photos import PhotoSet, Role, check_separate
from apdm.data.subjects import find_subjects, load_images
from apdm.faces.detector_score import DetectorScore
from apdm.jobs.auditing.inputs import AuditInputs
from apdm.jobs.common.face_networks import face_networks
from apdm.jobs.common.prepare import keep_apart
from apdm.jobs.hardening.final_audit import learnt_photos, load_audit_inputs
from apdm.jobs.hardening.partners import require_partners
from apdm.jobs.photos.job import PhotoJob

logger = get_logger(__name__)


@dataclass(frozen=True)
class Photos:
    """Photos of a group of people.

    Attributes:
        instance: {subject id: photos, `[N, 3, R, R]`, uint8}.
        safe: {subject id: safe partners of these photos, `[N, 3, R, R]`, uint8}. Only subjects with partners.
        sets: the photos and the partners, to be compared with those of other folders.
        captions: {subject id: a caption of each photo}; empty without the option for captions.
    """

    instance: Mapping[str, Tensor] = field(default_factory=dict)
    safe: Mapping[str, Tensor] = field(default_factory=dict)
    sets: Sequence[PhotoSet] = ()
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)

    @staticmethod
    def load(
        folder: str | None,
        resolution: int,
        role: Role,
        *,
        pairs: str = "none",
        chosen: Chosen = PROTECTED_SET,
        caption_column: str | None = None,
    ) -> Photos:
        """Load the photos of all subjects in `folder`, as squares with a side of `resolution` pixels.

        Args:
            folder: the folder of subjects; None gives no photos.
            resolution: R, the side of the squares in pixels.
            role: what the photos are used for.
            pairs: the option `pairs`. With "none", partners are not loaded.
            chosen: which set to use if the photos of each subject lie in sets.
            caption_column: where the captions of the photos are, see `apdm.data.photo_captions`; None reads none.

        Raises:
            UserError: the folder has no subjects, a photo cannot be used, or there are not the partners or captions
                that are asked for.
        """
        if folder is None:
            return Photos()
        subjects = find_subjects(folder, chosen=chosen)
        if pairs == "folder":
            require_partners(subjects, folder)
        partners = {one.id: one.safe for one in subjects if one.safe is not None and pairs != "none"}
        with Faults() as faults:
            loaded = faults.of(lambda: each(subjects, lambda one: load_images(one.images, resolution)))
            of_partners = faults.of(lambda: each(partners.values(), lambda files: load_images(files, resolution)))
            captions = []
            if caption_column:
                captions = faults.of(lambda: each(subjects, lambda one: read_captions(one.images, caption_column)))
        instance = {subject.id: images for subject, images in zip(subjects, loaded, strict=True)}
        safe = dict(zip(partners, of_partners, strict=True))
        if pairs == "none" and any(one.safe for one in subjects) and role is not Role.CONSENTING:
            logger.warning("pairs is none: the safe partners in %s are not used", folder)
        sets = [PhotoSet.of_people(role, folder, subjects, instance)]
        sets += [PhotoSet.of(Role.SAFE, folder, files, safe[person]) for person, files in partners.items()]
        return Photos(instance, safe, sets, dict(zip(instance, captions, strict=False)))

    def content_hash(self, person: str) -> str:
        """Return one SHA-256, in hex, of all that is learnt of a person: photos, partners and captions."""
        pixels = tensor_hash(self.instance[person], self.safe.get(person))
        captions = self.captions.get(person)
        return sha256(json.dumps([pixels, *captions]).encode()).hexdigest() if captions else pixels

    @property
    def unpaired(self) -> dict[str, Tensor]:
        """{subject id: photos} of the subjects without partners."""
        return {subject: images for subject, images in self.instance.items() if subject not in self.safe}


@dataclass(frozen=True, kw_only=True)
class HardenFiles:
    """The part of a run's input that can be read without the models.

    Attributes:
        photos: photos of the protected people.
        consenting: photos of people who consent, for benign attackers.
        earlier: photos of people whom the model to harden already protects.
        audit_inputs: the people and the judges for audit and probe; None if the run has neither.
        photo_job: protects the photos themselves; None if the run does not.
    """

    photos: Photos = Photos()
    consenting: Photos = Photos()
    earlier: Photos = Photos()
    audit_inputs: AuditInputs | None = None
    photo_job: PhotoJob | None = None

    def check_people(self, class_pictures: Sequence[PhotoSet]) -> None:
        """Check that no photo and no person is in two folders of different groups. Raises UserError otherwise."""
        sets = [*self.photos.sets, *self.consenting.sets, *self.earlier.sets, *class_pictures]
        if self.audit_inputs is not None:
            sets += self.audit_inputs.subjects.sets
        check_separate(sets)
        if self.audit_inputs is not None:
            check_faces(sets, self.audit_inputs.judges.encoders, self.audit_inputs.judges.face_score)
        elif self.photo_job is not None and self.photo_job.faces is not None:
            misled = self.photo_job.faces
            check_faces(sets, misled.encoders, DetectorScore(misled.detector), judged=False)


def read_files(config: HardenConfig) -> HardenFiles:
    """Read and check photos, judges and face networks. Raises UserError with all that cannot be used."""
    benign_data_dir = config.pool.benign_data_dir if config.pool.benign_size else None
    load = partial(Photos.load, resolution=config.resolution, chosen=Chosen(config.protected_set))
    learnt = learnt_photos(config)
    apart = partial(keep_apart, output_dir=config.output_dir, class_data_dir=config.class_data_dir)
    faces = face_networks(config)
    with Faults() as faults:
        faults.of(lambda: apart(config.photo_folders))
        photos = faults.of(
            lambda: load(
                config.instance_data_dir,
                role=Role.PROTECTED,
                pairs=config.pairs,
                chosen=learnt,
                caption_column=config.variety.caption_column,
            )
        )
        consenting = faults.of(lambda: load(benign_data_dir, role=Role.CONSENTING))
        earlier = faults.of(lambda: load(config.rehearsal_data_dir, role=Role.EARLIER, pairs=config.pairs))
        faults.of(lambda: each(config.variety.photos, make_purifier))
        audit_inputs = None
        if config.measures_likeness:
            audit_inputs = faults.of(lambda: load_audit_inputs(config, faces))
        photo_job = faults.of(lambda: PhotoJob.load(config, faces)) if config.image_layer.enabled else None
    captions = [caption for own in photos.captions.values() for caption in own]
    if lacking := prompts_without_identifier(captions, config.instance_prompt, config.class_prompt):
        message = "%d of %d captions lack the rare word of instance_prompt; write it into each caption"
        logger.warning(message, len(lacking), len(captions))
    return HardenFiles(
        photos=photos, consenting=consenting, earlier=earlier, audit_inputs=audit_inputs, photo_job=photo_job
    )
