"""`apdm audit --protected_photos DIR --photos DIR`: attack with clean and protected photos, without hardening."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch

from apdm.attacks.registry import settings
from apdm.audit.cells.class_pictures import measure_strangers, warn_of_few_faces, warn_of_few_strangers
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.captions import photos_with_captions
from apdm.audit.inputs.face_checks import check_faces
from apdm.audit.inputs.people import AuditSubjects, Person, load_strangers
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import HeldOut, ProtectedPhotos, hold_out, hold_out_from, load_protected_photos
from apdm.audit.photo_attacks import PhotoAudit, attack_and_judge_photos
from apdm.audit.photo_verdict import judge_photos
from apdm.audit.results.common import SCHEMA
from apdm.audit.results.file import write_results
from apdm.audit.results.photos import ImageLayer, PhotoResults, PhotoThresholds
from apdm.config import AuditJobConfig
from apdm.core.errors import Faults, UserError
from apdm.core.pictures import to_unit
from apdm.core.versions import package_versions
from apdm.data.photo_sets import Chosen, has_sets
from apdm.data.separate_photos import check_separate
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker
from apdm.export.layout import PHOTO_CELLS, REPORT, RESULTS
from apdm.faces import FaceNetworks
from apdm.jobs.auditing.inputs import check_reused, load_judges, try_networks
from apdm.jobs.auditing.output import cell_store, claim_audit_dir
from apdm.jobs.auditing.picture_sheets import read_pictures, save_pictures
from apdm.jobs.auditing.plan import check_with_models, model_file, read_models
from apdm.jobs.auditing.run import with_class_pictures
from apdm.jobs.common.face_networks import face_networks
from apdm.jobs.common.prepare import keep_apart
from apdm.jobs.common.results import AuditResult
from apdm.jobs.common.stages import PHOTO_ATTACKS, PREPARING, audit_stages
from apdm.jobs.common.tracked import start_tracker, track_audit
from apdm.jobs.planning.plan import photo_audit_plan, show_plan
from apdm.metrics.utility import StrangersLikeness
from apdm.report.photo_page import write_photo_report


def audit_photos(
    config: AuditJobConfig, command: str | None, processes: ProcessGroup, device: torch.device, held: ExitStack
) -> AuditResult:
    """Attack the base with clean and with protected photos, and judge whether the photos protect.

    Args:
        held: keeps other runs out of the output folder until it is closed.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept.
    """
    stages = held.enter_context(audit_stages(models=False, photos=True))
    stages.begin(PREPARING)
    plan, specs, photos = processes.main_first(lambda: load_photo_audit(config, command))
    judges = plan.judges
    processes.on_main(lambda: check_faces(plan.subjects.sets, judges.encoders, judges.face_score))
    output = processes.broadcast(lambda: claim_audit_dir(config, held))
    tracker = processes.on_main(lambda: start_tracker(config, held))
    processes.on_main(
        lambda: show_plan(photo_audit_plan(config, plan, specs, photos, processes=processes, device=device))
    )
    plan.models["base"].pipeline.to(device)
    stages.begin(PHOTO_ATTACKS)
    results = _attack_and_report(config, plan, specs, photos, processes, tracker)
    verdict = processes.broadcast(lambda: cast(PhotoResults, results).verdict)  # the main process has the results
    return AuditResult(output_dir=output, verdict=verdict, results=results)


def load_photo_audit(
    config: AuditJobConfig, command: str | None
) -> tuple[AuditPlan, PhotoAttackSpecs, ProtectedPhotos]:
    """Read and check all input, before anything is written.

    Returns:
        The plan, with the attacked model, the people with the photos that are attacked and held out, and the judges;
        the attacks besides the nominal one; and the photos that are attacked, clean and protected.

    Raises:
        UserError: something is missing or wrong. All that was found is told.
    """
    folders = {"photos": str(config.photos), "protected_photos": str(config.protected_photos), **config.photo_folders}
    faces, base = face_networks(config), str(config.base)
    with Faults() as faults:
        faults.of(lambda: keep_apart(folders, output_dir=config.output_dir))
        faults.of(lambda: check_reused(config))
        specs = faults.of(lambda: _read_specs(config, faces))
        models = faults.of(lambda: read_models(config, {"base": base}))
        read = faults.of(lambda: _read_photos(config))
        judges = faults.of(lambda: load_judges(config, faces))
    subjects, photos = read
    factory = AttackFactory(config, config.instance_prompt, config.class_prompt)
    with Faults() as faults:
        faults.of(lambda: check_with_models(config, (), models))
        faults.of(lambda: specs.check(models["base"], config.num_inference_steps))
        faults.of(lambda: specs.check_photos(photos.counts))
        attacked = faults.of(lambda: photos_with_captions(photos, specs, factory))
        faults.of(lambda: try_networks(subjects, judges, specs, config.subject_kind))
    plan = AuditPlan(
        options=config,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        models=models,
        subjects=subjects,
        judges=judges,
        seed=config.seed,
        batch_size=config.sample_batch_size,
        entries=(),
        files={"base": model_file(base, models["base"])},
        command=command,
    )
    return plan, specs, attacked


def _read_specs(config: AuditJobConfig, faces: FaceNetworks) -> PhotoAttackSpecs:
    """Read the attacks. Raises UserError if an attack or an option of one is wrong."""
    settings(config.attack_options)
    prompts = config.instance_prompt, config.class_prompt
    return PhotoAttackSpecs.load(config, faces, *prompts, allow_pickle=config.allow_pickle)


def _read_photos(config: AuditJobConfig) -> tuple[AuditSubjects, ProtectedPhotos]:
    """Read all photos.

    Returns:
        The people, with the clean photos that are attacked and those that are held out, and strangers; and the photos
        that are attacked, clean and protected.

    Raises:
        UserError: a photo cannot be read or has no counterpart, nothing was protected, nothing can be held out, or one
            photo has two uses.
    """
    with Faults() as faults:
        held = faults.of(lambda: _hold_out(config))
        strangers = faults.of(lambda: load_strangers(config.strangers_data_dir, config.resolution))
    sets = [*strangers, held.attacked.originals, *held.sets]
    check_separate(sets)
    people = [
        Person(id=one, photos=pair.clean, references=held.references[one]) for one, pair in held.attacked.pairs.items()
    ]
    subjects = AuditSubjects(
        people,
        [],
        strangers[0].images[0] if strangers else None,
        sets=sets,
        held_out_from="originals" if _holdout_folder(config) is None else "folder",
    )
    return subjects, held.attacked


def _hold_out(config: AuditJobConfig) -> HeldOut:
    """Read the clean and the protected photos, and hold photos out."""
    originals, protected = str(config.photos), str(config.protected_photos)  # given in an audit of photos
    given = load_protected_photos(originals, protected, config.resolution, chosen=Chosen(config.protected_set))
    if all(torch.equal(pair.clean, pair.protected) for pair in given.pairs.values()):
        raise UserError(f"the photos in {protected} look exactly like those in {originals}: give the protected ones")
    folder = _holdout_folder(config)
    if folder is None:
        return hold_out(given)
    return hold_out_from(folder, given, config.resolution, Chosen(config.holdout_set, "holdout_set"))


def _holdout_folder(config: AuditJobConfig) -> str | None:
    """The folder of the hold-out photos, perhaps in a set of each person; None if some originals are held out."""
    return config.holdout_data_dir or (config.photos if has_sets(config.photos) else None)


def _attack_and_report(
    config: AuditJobConfig,
    plan: AuditPlan,
    specs: PhotoAttackSpecs,
    photos: ProtectedPhotos,
    processes: ProcessGroup,
    tracker: Tracker | None,
) -> PhotoResults | None:
    """Attack, judge, and write results.json, report.html and the pictures. Only the main process returns results."""
    plan, drawn, prior = with_class_pictures(config, plan, processes)
    judges, output = plan.judges, Path(config.output_dir)
    known = {person.id: judges.embed_person(to_unit(person.references)) for person in plan.subjects.protected}
    seen = judges.features(drawn)
    del drawn  # of large pictures, gigabytes
    processes.on_main(lambda: warn_of_few_faces(judges, seen.detected))
    strangers, matched = measure_strangers(plan, known, seen)
    processes.on_main(lambda: warn_of_few_strangers(strangers))
    store = cell_store(output, PHOTO_CELLS, processes, config.reuse_audits)
    audit = PhotoAudit(plan, prior, specs, photos.pairs)
    processes.on_main(lambda: store.require_room(audit.pictures_size(store)))
    if processes.is_main:
        audit.tidy(store)
    processes.wait()
    done = attack_and_judge_photos(audit, photos, strangers, store, processes)
    if done is None:
        return None
    layer, pictures = done
    results = _judged(plan, layer, strangers, matched)
    write_results(results, output / RESULTS)
    save_pictures(pictures, output)
    shown = read_pictures(results, output)
    write_photo_report(results, output / REPORT, shown)
    if tracker is not None:
        track_audit(tracker, results, shown, output / REPORT)
    return results


def _judged(
    plan: AuditPlan, layer: ImageLayer, strangers: dict[str, StrangersLikeness], matched: dict[str, float]
) -> PhotoResults:
    """Add the verdict to what the attacks gave."""
    limits = plan.thresholds
    thresholds = PhotoThresholds(
        max_match_rate=limits.max_match_rate, max_likeness_over_strangers=limits.max_likeness_over_strangers
    )
    verdict = judge_photos(
        layer.by_attack or [],
        repeats=plan.repeats,
        strangers=strangers,
        strangers_matched=matched,
        thresholds=thresholds,
    )
    return PhotoResults(
        schema=SCHEMA,
        kind="photos",
        command=plan.command,
        package=package_versions(),
        seeds=plan.seeds,
        models=dict(plan.files),
        subjects=[person.id for person in plan.subjects.protected],
        photos=plan.subjects.counts,
        judges=plan.judges.describe(),
        strangers=strangers,
        strangers_matched=matched,
        prompts=plan.prompts,
        image_layer=layer,
        thresholds=thresholds,
        verdict=verdict,
    )
