"""`apdm audit`: run a suite of attacks on models and people, and write results.json and report.html.

Without a hardened model the command audits photos alone: `photo_audit.py`. `apdm harden` with `audit.enabled` uses
`audit_and_report` at its end. What an audit reads first is in `auditing/inputs.py`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.captions import photos_with_captions
from apdm.audit.inputs.face_checks import check_faces
from apdm.audit.inputs.people import PROTECTED, PhotoFolders
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos, hold_out, load_protected_photos
from apdm.audit.inputs.search_space import SearchOptions
from apdm.audit.inputs.suites import choose_entries, with_textual_inversion
from apdm.audit.results.models import Results
from apdm.audit.search import check_search
from apdm.config import AuditJobConfig
from apdm.core.errors import Faults, UserError
from apdm.data.photo_sets import Chosen, has_sets
from apdm.data.separate_photos import PhotoSet, check_separate
from apdm.distributed.launch import join_processes, stop_on_signals_or_loss
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import require_tracker
from apdm.export.metadata import facts_in
from apdm.jobs.auditing.inputs import AuditInputs, warn_if_too_short
from apdm.jobs.auditing.output import KEPT, claim_audit_dir, has_finished_attacks
from apdm.jobs.auditing.plan import make_plan, read_people_and_models
from apdm.jobs.auditing.run import audit_and_report
from apdm.jobs.common.prepare import keep_apart, prepare_process, warn_about_prompts
from apdm.jobs.common.results import AuditResult
from apdm.jobs.common.stages import PREPARING, audit_stages
from apdm.jobs.common.tracked import start_tracker
from apdm.jobs.photo_audit import audit_photos
from apdm.jobs.planning.plan import audit_plan, show_plan


def audit_models(config: AuditJobConfig, *, command: str | None = None) -> AuditResult:
    """Attack base and hardened model, or only clean and protected photos, and judge what the attackers' models draw.

    The command `apdm audit` and the Python function `apdm.audit` both run this function, in one process or in the
    processes that `accelerate launch` started.

    Returns:
        The output folder, the verdict, and in the main process the content of results.json.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept, and the same call goes on from there.
    """
    output = Path(config.output_dir)
    processes, device = join_processes()
    with stop_on_signals_or_loss(processes, KEPT, kept=lambda: has_finished_attacks(output)), ExitStack() as held:
        prepare_process(config.num_threads)
        require_tracker(config.report_to)
        warn_about_prompts(config.instance_prompt, config.class_prompt, audit=config.prompts)
        job = audit_photos if config.hardened is None else _audit
        return job(config, command, processes, device, held)


def _audit(
    config: AuditJobConfig, command: str | None, processes: ProcessGroup, device: torch.device, held: ExitStack
) -> AuditResult:
    """Audit a hardened model. `held` keeps other runs out of the output folder until it is closed."""
    with_photos = config.protected_photos is not None
    stages = held.enter_context(audit_stages(models=True, photos=with_photos))
    stages.begin(PREPARING)
    plan, inputs, photos = processes.main_first(lambda: load_audit(config, command))
    judges = inputs.judges
    processes.on_main(lambda: check_faces(photo_sets(inputs, photos), judges.encoders, judges.face_score))
    output = processes.broadcast(lambda: claim_audit_dir(config, held))
    tracker = processes.on_main(lambda: start_tracker(config, held))
    processes.on_main(lambda: show_plan(audit_plan(config, plan, photos, processes=processes, device=device)))
    warn_if_too_short(config, plan.entries)
    for model in plan.models.values():
        model.pipeline.to(device)
    results = audit_and_report(
        config, plan, inputs.photo_attacks, photos, processes=processes, stages=stages, tracker=tracker
    )
    verdict = processes.broadcast(lambda: cast(Results, results).verdict)  # the main process has the results
    return AuditResult(output_dir=output, verdict=verdict, results=results)


# -- the parts of `apdm audit` -------------------------------------------------------------------------------


def load_audit(config: AuditJobConfig, command: str | None) -> tuple[AuditPlan, AuditInputs, ProtectedPhotos | None]:
    """Read and check all input, before anything is written."""
    names = ("base", "hardened", "placebo", "sibling", "hardened_sibling")
    paths: dict[str, str] = {name: path for name in names if (path := getattr(config, name)) is not None}
    folders = PhotoFolders.below(str(config.subjects), config)  # subjects are given with a hardened model
    given = {f"the {role} photos in": folder for role, folder in folders.by_group.items()}

    with Faults() as faults:
        factory = AttackFactory(config, config.instance_prompt, config.class_prompt)
        choose = partial(choose_entries, config.suite, factory=factory, captions=config.caption_column)
        # If an attack is wrong, the suite takes the place of the attacks, so that the rest is checked too.
        entries = faults.of(lambda: choose(config.attacks)) or choose(())
        if config.known_before:
            entries = with_textual_inversion(entries, factory)
        search = faults.of(lambda: search_of(config))
        faults.of(lambda: keep_apart(given, output_dir=config.output_dir))
        with_photos = config.protected_photos is not None
        inputs, models = read_people_and_models(config, folders, paths, entries, faults, with_photos=with_photos)
    if inputs.subjects.held_out_from == "originals":
        place = models["hardened"].origin or Path(paths["hardened"])
        left_out = "held_out" in facts_in(place if place.exists() else None)
        inputs = replace(inputs, subjects=replace(inputs.subjects, left_out=left_out))
    plan = make_plan(config, inputs, models, paths, entries, command)
    plan = replace(plan, search=search, guidance=config.known_before)
    return plan, inputs, _load_photos(config, folders, inputs, plan)


def _load_photos(
    config: AuditJobConfig, folders: PhotoFolders, inputs: AuditInputs, plan: AuditPlan
) -> ProtectedPhotos | None:
    """Read and check the protected photos that are attacked too; None if there are none."""
    if inputs.photo_attacks is None or config.protected_photos is None:
        return None
    subjects = str(config.subjects)
    originals = config.photos or (subjects if has_sets(subjects) else str(Path(subjects) / PROTECTED))
    if config.photos is None and not os.path.isdir(originals):
        raise UserError(f"{originals} does not exist; give photos, the folder of the originals of protected_photos")
    photos = load_protected_photos(
        originals,
        config.protected_photos,
        config.resolution,
        known=[person.id for person in inputs.subjects.protected],
        chosen=Chosen(config.protected_set),
    )
    if folders.last_third and os.path.samefile(originals, folders.holdout):
        photos = hold_out(photos).attacked
    photos = photos_with_captions(photos, inputs.photo_attacks, plan.factory)
    inputs.photo_attacks.check(plan.models["base"], config.num_inference_steps)
    inputs.photo_attacks.check_photos(photos.counts)
    check_separate(photo_sets(inputs, photos))
    return photos


def search_of(config: AuditJobConfig) -> SearchOptions | None:
    """Return how an attacker searches; None for no search. Raises UserError if the package that searches is missing."""
    if not config.search:
        return None
    check_search()
    return SearchOptions(
        trials=config.search,
        samples=config.search_samples,
        min_face_rate=config.search_min_face_rate,
        people=config.search_people,
    )


def photo_sets(inputs: AuditInputs, photos: ProtectedPhotos | None) -> list[PhotoSet]:
    """All photos of an audit."""
    return [*([] if photos is None else [photos.originals]), *inputs.subjects.sets]
