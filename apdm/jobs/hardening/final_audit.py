"""The audit at the end of a hardening job, with the code of `apdm audit`. The probe has the same people and judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from apdm.audit.inputs.people import PhotoFolders
from apdm.audit.inputs.plan import ONLY_NOMINAL, AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos, hold_out, load_protected_photos
from apdm.audit.results.common import ModelFile
from apdm.audit.results.models import Results
from apdm.config import HardenConfig
from apdm.core.errors import Faults, UserError
from apdm.core.files import model_hash
from apdm.core.stages import Stages
from apdm.data.photo_sets import Chosen, has_sets
from apdm.data.subjects import find_subjects
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker
from apdm.export.layout import MODEL
from apdm.faces import FaceNetworks
from apdm.families import Family
from apdm.jobs.auditing.inputs import AuditInputs, load_inputs, warn_if_too_short
from apdm.jobs.auditing.plan import model_file
from apdm.jobs.auditing.run import audit_and_report


def learnt_photos(config: HardenConfig) -> Chosen:
    """Return which photos of each protected person the run hardens against.

    Where the audit or the probe measures likeness and no hold-out photos are given, the last third is held out.
    """
    options = config.audit
    held_out = config.measures_likeness and options.holdout_data_dir is None and not has_sets(config.instance_data_dir)
    holdout = f"{options.prefix}holdout_data_dir"
    return Chosen(config.protected_set, part="kept" if held_out else "all", holdout=holdout)


def load_audit_inputs(config: HardenConfig, faces: FaceNetworks) -> AuditInputs:
    """Read and check everything that the audit and the probe of a hardening job need besides the models.

    Raises:
        UserError: an attack cannot run, or photos or networks cannot be loaded.
    """
    options = config.audit
    with Faults() as faults:
        protected = faults.of(lambda: find_subjects(config.instance_data_dir, chosen=learnt_photos(config)))
        if not config.image_layer.enabled:  # faceid_adapter is not refused: without protected photos it has no effect
            faults.of(lambda: options.refuse("purifiers", "photo_attacks", mend="set image_layer.enabled to true"))
        ids = [subject.id for subject in protected] if protected else None
        inputs = faults.of(lambda: _load_inputs(config, faces, ids))
        if inputs is not None and inputs.photo_attacks is not None and inputs.photo_attacks.caption_columns:
            raise UserError(
                "caption_column is of an attack on protected photos, whose captions apdm audit reads, and apdm harden "
                "does not; leave it out, and run apdm audit afterwards"
            )
    if options.enabled:
        warn_if_too_short(options, ONLY_NOMINAL)
    return inputs


def _load_inputs(config: HardenConfig, faces: FaceNetworks, protected: Sequence[str] | None) -> AuditInputs:
    """Load the people and the judges. `protected` are the ids of the protected people; None if they are not known."""
    options, originals = config.audit, config.instance_data_dir
    last_third = learnt_photos(config).part == "kept"
    inputs = load_inputs(
        config,
        PhotoFolders(
            attack=options.attack_data_dir or originals,
            holdout=options.holdout_data_dir or originals,
            other=options.other_data_dir,
            strangers=options.strangers_data_dir,
            last_third=last_third,
        ),
        faces,
        entries=ONLY_NOMINAL,
        models=("base", "hardened"),
        with_photos=config.image_layer.enabled,
        protected=protected,
    )
    return replace(inputs, subjects=replace(inputs.subjects, left_out=last_third))


def final_plan(config: HardenConfig, inputs: AuditInputs, base: Family, hardened: Family) -> AuditPlan:
    """Return the plan of the audit at the end, as far as it is known before the hardening."""
    return AuditPlan(
        options=config.audit,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        models={"base": base, "hardened": hardened},
        subjects=inputs.subjects,
        judges=inputs.judges,
        seed=config.seed,
        batch_size=config.sample_batch_size,
    )


def photos_to_attack(config: HardenConfig, inputs: AuditInputs) -> ProtectedPhotos:
    """Return the photos that the run protected, and their originals, without those that measure likeness."""
    known = [person.id for person in inputs.subjects.protected]
    chosen, output = Chosen(config.protected_set), Path(config.output_dir)
    photos = load_protected_photos(config.instance_data_dir, output, config.resolution, known=known, chosen=chosen)
    if inputs.subjects.held_out_from == "originals":  # the image layer protects the photos that are held out, too
        return hold_out(photos).attacked
    return photos


def audit_hardened(
    config: HardenConfig,
    inputs: AuditInputs,
    base: Family,
    hardened: Family,
    processes: ProcessGroup,
    stages: Stages,
    *,
    tracker: Tracker | None,
    command: str | None,
) -> Results | None:
    """Attack the base, the hardened model and the protected photos, and write results.json and report.html.

    Args:
        inputs: the people, the judges and the attacks on photos.

    Returns:
        The results in the main process; None in the others.
    """
    output = Path(config.output_dir)
    files = {
        "base": model_file(config.base, base),
        "hardened": ModelFile(path=MODEL, sha256=model_hash(output / MODEL)),
    }
    plan = replace(final_plan(config, inputs, base, hardened), files=files, command=command)
    photos = None if inputs.photo_attacks is None else photos_to_attack(config, inputs)
    return audit_and_report(
        config, plan, inputs.photo_attacks, photos, processes=processes, stages=stages, tracker=tracker
    )
