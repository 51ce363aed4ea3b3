"""What every audit reads before any long work, besides the models: people, judges and attacks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.registry import settings
from apdm.attacks.staged import needs_consenting
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.captions import with_captions
from apdm.audit.inputs.match_thresholds import warn_if_few_photos
from apdm.audit.inputs.people import CONSENTING, AuditSubjects, PhotoFolders
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs, load_adapter
from apdm.audit.inputs.suites import Entry, available_entries, check_photos, cost_factor_warning
from apdm.config import AuditingConfig, AuditOptions
from apdm.config.groups.subject_kind import SubjectKind
from apdm.core.errors import Faults, UserError
from apdm.core.logging import get_logger
from apdm.core.pictures import to_unit
from apdm.export.layout import CELLS, PHOTO_CELLS, SEARCH_CELLS
from apdm.faces import FaceNetworks
from apdm.faces.portrait import PortraitFeatures, PortraitReader
from apdm.families.miniature import is_miniature
from apdm.metrics.judges import Judges
from apdm.metrics.objects import ObjectEncoder
from apdm.metrics.trial import try_encoder, try_judges

logger = get_logger(__name__)

TRIED = 2  # photos of each kind on which the networks are tried before the long work


@dataclass(frozen=True, kw_only=True)
class AuditInputs:
    """What an audit needs besides the models. It is read and checked before any long work.

    Attributes:
        subjects: the people with their photos.
        judges: the networks that measure pictures.
        photo_attacks: the attacks on protected photos; None if no photos are attacked.
        adapter: what the attack `faceid` on models draws with; None if no model is attacked with it.
    """

    subjects: AuditSubjects
    judges: Judges
    photo_attacks: PhotoAttackSpecs | None
    adapter: FaceIDAdapter | None = None


def load_inputs(
    config: AuditingConfig,
    folders: PhotoFolders,
    faces: FaceNetworks,
    *,
    entries: Sequence[Entry],
    models: Collection[str],
    with_photos: bool,
    protected: Sequence[str] | None = None,
) -> AuditInputs:
    """Load the people and the judges, and check that the attacks can run.

    Args:
        faces: the networks for faces, of which the audit of people takes the judges.
        models: names of the models that will be attacked, such as "base" and "hardened".
        with_photos: whether protected photos are attacked.
        protected: ids of the protected people; None means everybody whose photos the attacker has.

    Raises:
        UserError: none of the attacks can run, an option of an attack is wrong, or photos or networks cannot be loaded.
    """
    options, prompts = config.audit, (config.instance_prompt, config.class_prompt)
    check_reused(options)
    factory = AttackFactory(options, *prompts)
    specs: PhotoAttackSpecs | None = None
    adapter: FaceIDAdapter | None = None
    with Faults() as faults:
        faults.of(lambda: _check_attacks(options, entries, models, factory))
        if with_photos:
            specs = faults.of(lambda: PhotoAttackSpecs.load(options, faces, *prompts, allow_pickle=config.allow_pickle))
        if any(entry.spec == FaceIDAdapter.name for entry in entries):
            adapter = faults.of(lambda: load_adapter(options, faces, allow_pickle=config.allow_pickle))
        subjects = faults.of(
            lambda: folders.load(
                config.resolution,
                protected=protected,
                prefix=options.prefix,
                attacker_set=options.attacker_set,
                holdout_set=options.holdout_set,
            )
        )
        if subjects is not None and not faults.found:
            subjects = faults.of(lambda: _checked_people(subjects, entries, models, factory))
        judges = faults.of(lambda: load_judges(config, faces))
    try_networks(subjects, judges, specs, config.subject_kind)
    return AuditInputs(subjects=subjects, judges=judges, photo_attacks=specs, adapter=adapter)


def _check_attacks(
    options: AuditOptions, entries: Sequence[Entry], models: Collection[str], factory: AttackFactory
) -> None:
    """Raise UserError if an option of an attack is wrong, or none of the attacks can run with these models."""
    settings(options.attack_options)
    if not available_entries(entries, models, factory)[0]:
        raise UserError(
            "none of the attacks can run with these models; see apdm audit --help-all on placebo and sibling"
        )


def _checked_people(
    subjects: AuditSubjects, entries: Sequence[Entry], models: Collection[str], factory: AttackFactory
) -> AuditSubjects:
    """Return the people with their captions. Raises UserError if an attack needs more photos, or other people."""
    available = available_entries(entries, models, factory)[0]
    subjects = with_captions(subjects, available, factory)
    for entry in available_entries(available, models, factory, subjects=subjects)[0]:
        attack = factory.make(entry.spec, seed=0)
        check_photos(entry, attack, subjects)
        if subjects.consenting is None and needs_consenting(attack):
            raise UserError(
                f"the attack {entry.spec} trains on other people first: put photos of people who consent into "
                f"{CONSENTING}/<id>/ in the folder of subjects, or leave the attack out"
            )
    return subjects


def try_networks(
    subjects: AuditSubjects, judges: Judges, specs: PhotoAttackSpecs | None, subject_kind: SubjectKind
) -> None:
    """Try every network on photos of the first person, and warn of photos that are too few for a threshold.

    Args:
        specs: the attacks on protected photos; None if no photos are attacked.
        subject_kind: what the subjects are.

    Raises:
        UserError: a network cannot be used.
    """
    first = subjects.protected[0]
    photos = to_unit(torch.cat([first.references[:TRIED], first.photos[:TRIED]]))
    try_judges(judges, photos)
    if specs is not None and specs.adapter is not None:
        try_encoder(specs.adapter.encoder, photos)
    if subject_kind == "object":
        warn_if_few_photos(subjects)


def check_reused(options: AuditOptions) -> None:
    """Raise UserError if a folder that names earlier audits holds no finished attacks."""
    for folder in options.reuse_audits:
        if not any((Path(folder) / name).is_dir() for name in (CELLS, SEARCH_CELLS, PHOTO_CELLS)):
            raise UserError(
                f"{options.prefix}reuse_audits: {folder} holds no finished attacks ({CELLS}/); give the output folder "
                "of an earlier audit"
            )


def load_judges(config: AuditingConfig, faces: FaceNetworks) -> Judges:
    """Load the networks that measure pictures. For objects no network for faces is loaded.

    The features of whole pictures are read by the networks that `judge` names. In the miniature world the bundled ones
    stand in for them; elsewhere what needs such features is not measured.

    Raises:
        UserError: a network cannot be loaded.
    """
    from apdm.metrics.networks import load_feature_networks  # which imports transformers

    options, is_person = config.audit, config.subject_kind == "person"
    miniature = is_miniature(str(config.base), config.single_file_config)
    with Faults() as faults:
        networks = faults.of(
            lambda: load_feature_networks(
                options.judge, allow_pickle=config.allow_pickle, option=f"{options.prefix}judge"
            )
        )
        encoders = faults.of(lambda: faces.encoders) if is_person else []
        face_score = faults.of(lambda: faces.face_score) if is_person else None
    if face_score is None:
        given = [network for network in (networks.dino, networks.clip) if network is not None]
        likeness = [ObjectEncoder(extractor=network) for network in given]
        return Judges(likeness, None, networks.first or given[0], dino=networks.dino, clip=networks.clip)
    return Judges(
        encoders,
        face_score,
        networks.first or (PortraitFeatures() if miniature else None),
        dino=networks.dino,
        clip=networks.clip,
        # The bundled reader of attributes and its features know only the drawn people of the miniature world.
        reader=PortraitReader() if miniature else None,
    )


def warn_if_too_short(options: AuditOptions, entries: Sequence[Entry]) -> None:
    """Log a warning if the attacks are so short that the verdict can only be "not protected"."""
    if short := cost_factor_warning(options, entries):
        logger.warning(short)
