"""Runs an audit of models: class pictures, attacks, results.json and the report. It may attack protected photos too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from apdm.audit.inputs.match_thresholds import with_match_thresholds
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.photo_attacks import PhotoAudit, attack_and_judge_photos
from apdm.audit.results.file import write_results
from apdm.audit.results.models import Results
from apdm.config import AuditingConfig, AuditJobConfig, HardenConfig
from apdm.core.stages import Stages
from apdm.data.class_images import ensure_class_images
from apdm.data.subjects import load_images
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker
from apdm.export.layout import ATTACKER_CLASS_IMAGES, CELLS, PHOTO_CELLS, REPORT, RESULTS, SEARCH_CELLS
from apdm.families import Posterior
from apdm.families.encoding import encode_images
from apdm.jobs.auditing.output import cell_store
from apdm.jobs.auditing.picture_sheets import read_pictures, save_pictures, save_strips
from apdm.jobs.common.class_pictures import picture_recipe
from apdm.jobs.common.stages import ATTACKS, PHOTO_ATTACKS
from apdm.jobs.common.tracked import track_audit
from apdm.report.audit_page import write_report

UNFINISHED = (
    "Not finished: the attacks with the protected photos are not done yet. If the run was stopped, the same command "
    "goes on, for apdm harden with --resume_from_checkpoint latest. results.json is written at the end."
)
ATTACKER_SEED = 1_000_000  # added to the seed, so that the attacker's class pictures differ from the defence's


def audit_and_report(
    config: HardenConfig | AuditJobConfig,
    plan: AuditPlan,
    photo_attacks: PhotoAttackSpecs | None,
    photos: ProtectedPhotos | None,
    *,
    processes: ProcessGroup,
    stages: Stages,
    tracker: Tracker | None,
) -> Results | None:
    """Attack the models and the protected photos, measure, and write results.json, report.html and the pictures.

    Finished attacks are kept in the output folder. If an audit was stopped, the same call continues it.

    Args:
        plan: the models, the people, the attacks and the measurements.
        photo_attacks: the attacks on protected photos; None to attack no photos.
        photos: the protected photos and their originals; None to attack no photos.
        processes: the processes that share the attacks. All must see the same files.

    Returns:
        The results in the main process, None in the others.
    """
    stages.begin(ATTACKS)
    output, earlier = Path(config.output_dir), config.audit.reuse_audits
    plan, drawn, latents = with_class_pictures(config, plan, processes)
    del drawn  # of large pictures, gigabytes
    store = cell_store(output, CELLS, processes, earlier)
    trials = None if plan.search is None else cell_store(output, SEARCH_CELLS, processes, earlier)
    photo_audit, photo_store, afterwards = None, None, 0
    if photo_attacks is not None and photos is not None:
        photo_store = cell_store(output, PHOTO_CELLS, processes, earlier)
        photo_audit = PhotoAudit(plan, latents, photo_attacks, photos.pairs)
        afterwards = photo_audit.pictures_size(photo_store)
        processes.on_main(partial(photo_store.require_room, afterwards))  # before class pictures are drawn
        if processes.is_main:  # before the models are attacked, so that a process that is free goes on with the photos
            photo_audit.tidy(photo_store)
    done = attack_and_judge(plan, latents, store=store, trials=trials, processes=processes, afterwards=afterwards)
    layer = None
    if photo_audit is not None and photo_store is not None and photos is not None:
        stages.begin(PHOTO_ATTACKS)
        if done is not None:
            _write_unfinished(*done, output)
        strangers = {} if done is None else done[0].strangers
        layer = attack_and_judge_photos(photo_audit, photos, strangers, photo_store, processes)
    if done is None:
        return None
    results, pictures = done
    if layer is not None:
        results, pictures = replace(results, image_layer=layer[0]), pictures | layer[1]
    write_results(results, output / RESULTS)
    save_pictures(pictures, output)
    shown = read_pictures(results, output)
    save_strips(results, shown, output)
    write_report(results, output / REPORT, shown)
    if tracker is not None:
        track_audit(tracker, results, shown, output / REPORT)
    return results


def _write_unfinished(results: Results, pictures: Mapping[str, Tensor], output: Path) -> None:
    """Write the report on the models, while the attacks with the protected photos are still to come."""
    verdict = replace(results.verdict, notes=[UNFINISHED, *results.verdict.notes])
    save_pictures(pictures, output)
    write_report(replace(results, verdict=verdict), output / REPORT, read_pictures(results, output))


def with_class_pictures(
    config: AuditingConfig, plan: AuditPlan, processes: ProcessGroup
) -> tuple[AuditPlan, Tensor, Posterior]:
    """Draw the class pictures that the attacker uses for prior preservation, as far as they are missing.

    They are drawn like the defence's, but with other seeds.

    Returns:
        The plan, with how they are drawn and with the thresholds that are measured on them; the pictures
        `[N, 3, R, R]`, uint8; and their latents.
    """
    base, batch_size = plan.models["base"], plan.drawing.batch_size
    recipe = replace(picture_recipe(config, base), seed=plan.seed + ATTACKER_SEED)

    def draw() -> Tensor:
        folder, count = Path(config.output_dir) / ATTACKER_CLASS_IMAGES, plan.options.num_class_images
        paths = ensure_class_images(recipe, base, folder, count, batch_size=batch_size, replace=True)
        return load_images(paths, recipe.resolution)

    drawn = processes.main_first(draw)
    judges = with_match_thresholds(plan.judges, plan.subjects, drawn)
    with torch.no_grad():
        latents = encode_images(base, drawn, batch_size=batch_size)
    return replace(plan, class_images=asdict(recipe), judges=judges), drawn, latents
