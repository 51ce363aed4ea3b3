"""Steps that the audits of models, of photos alone and of a hardening job share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from apdm.audit.inputs.attack_factory import AttackFactory, check_on_model
from apdm.audit.inputs.match_thresholds import with_match_thresholds
from apdm.audit.inputs.models import load_models
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos
from apdm.audit.inputs.suites import Entry, available_entries
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.photo_attacks import PhotoAudit, attack_and_judge_photos
from apdm.audit.results.common import ModelFile
from apdm.audit.results.file import write_results
from apdm.audit.results.models import Results
from apdm.audit.results.store import CellStore, finished_cells
from apdm.config import AttackConfig, AuditingConfig, AuditJobConfig, HardenConfig
from apdm.core.files import claim_output_dir, delete, model_hash, write_text
from apdm.core.stages import Stages
from apdm.data.class_images import ensure_class_images
from apdm.data.subjects import load_images
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker
from apdm.export.layout import (
    ATTACK,
    ATTACKER_CLASS_IMAGES,
    CELLS,
    CONFIG,
    LIKENESS,
    MODEL,
    PHOTO_CELLS,
    PICTURES,
    REPORT,
    RESULTS,
    SEARCH_CELLS,
)
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.families.fit import check_steps
from apdm.families.prompts import check_prompts
from apdm.jobs.auditing.picture_sheets import save_pictures, save_strips
from apdm.jobs.common.base_model import check_resolution
from apdm.jobs.common.class_pictures import picture_recipe
from apdm.jobs.common.first_checks import check_made_by
from apdm.jobs.common.prepare import goes_on, resolved
from apdm.jobs.common.stages import ATTACKS, PHOTO_ATTACKS
from apdm.jobs.common.tracked import track_audit
from apdm.report.audit_page import write_report

UNFINISHED = (
    "Not finished: the attacks with the protected photos are not done yet. If the run was stopped, the same command "
    "goes on, for apdm harden with --resume_from_checkpoint latest. results.json is written at the end."
)
KEPT = "finished attacks are kept; the same command goes on"
ATTACKER_SEED = 1_000_000  # added to the seed, so that the attacker's class pictures differ from the defence's


# -- the audit itself ----------------------------------------------------------------------------------------


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
    plan, _, latents = with_class_pictures(config, plan, processes)
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
    shown = save_pictures(pictures, output)
    save_strips(results, shown, output)
    write_report(results, output / REPORT, shown)
    if tracker is not None:
        track_audit(tracker, results, shown, output / REPORT)
    return results


def _write_unfinished(results: Results, pictures: Mapping[str, Tensor], output: Path) -> None:
    """Write the report on the models, while the attacks with the protected photos are still to come."""
    verdict = replace(results.verdict, notes=[UNFINISHED, *results.verdict.notes])
    write_report(replace(results, verdict=verdict), output / REPORT, save_pictures(pictures, output))


def with_class_pictures(
    config: AuditingConfig, plan: AuditPlan, processes: ProcessGroup
) -> tuple[AuditPlan, Tensor, Posterior]:
    """Draw the class pictures that the attacker uses for prior preservation, as far as they are missing.

    They are drawn like the defence's, but with other seeds.

    Returns:
        The plan, with how they are drawn and with the thresholds that are measured on them; the pictures
        `[N, 3, R, R]` in [-1, 1]; and their latents.
    """
    base, batch_size = plan.models["base"], plan.drawing.batch_size
    recipe = replace(picture_recipe(config, base), seed=plan.seed + ATTACKER_SEED)

    def draw() -> Tensor:
        folder, count = Path(config.output_dir) / ATTACKER_CLASS_IMAGES, plan.num_class_images
        paths = ensure_class_images(recipe, base, folder, count, batch_size=batch_size, replace=True)
        return load_images(paths, recipe.resolution)

    drawn = processes.main_first(draw)
    judges = with_match_thresholds(plan.judges, plan.subjects, drawn)
    with torch.no_grad():
        latents = encode_images(base, drawn, batch_size=batch_size)
    return replace(plan, class_images=asdict(recipe), judges=judges), drawn, latents


def cell_store(output: Path, name: str, processes: ProcessGroup, earlier: Sequence[str]) -> CellStore:
    """Return the store `name` in the output folder. Finished attacks of `earlier` output folders are reused."""
    return CellStore(output / name, process=processes.index, earlier=[Path(folder) / name for folder in earlier])


def model_file(path: str, model: Family) -> ModelFile:
    """Return name and hash of a model for the results. `path` is the path or name that the user gave.

    Of a path on this machine the last part is kept; of a run's model the folder of the run too.
    """
    place, told = Path(path), path
    if place.is_absolute():
        told = "/".join(place.parts[-2:]) if place.name == MODEL else place.name
    return ModelFile(path=told, sha256=model_hash(model.origin or place))


def read_models(config: AuditJobConfig | AttackConfig, paths: dict[str, str]) -> dict[str, Family]:
    """Load models, {name: path or name}, of which one is "base".

    Raises:
        UserError: a model cannot be loaded, cannot be compared with the base, or cannot draw at the resolution.
    """
    models = load_models(
        paths,
        family=config.family,
        variant=config.variant,
        allow_pickle=config.allow_pickle,
        single_file_config=config.single_file_config,
        as_stored=config.dry_run,
    )
    check_resolution(models["base"], config.resolution)
    return models


def check_with_models(
    config: AuditJobConfig | AttackConfig, entries: Sequence[Entry], models: Mapping[str, Family]
) -> None:
    """Check what can be checked only with the models: the prompts, and whether the attacks fit the base.

    Raises:
        UserError: the model cannot read a prompt, cannot tell an attack's prompt from the class prompt, cannot draw in
            the way that an attack asks for, or has no layers of the kind that it trains. Or an attack that edits photos
            does nothing in so many sampling steps.
    """
    options, base = config.audit, models["base"]
    drawn = {"prompts": config.prompts, "edit_prompt": [options.edit_prompt] if options.edit_prompt else []}
    learned = {"instance_prompt": [config.instance_prompt]}
    check_prompts(base, learned=learned, class_prompt=config.class_prompt, drawn=drawn)
    check_steps(base, {f"{options.prefix}num_inference_steps": options.num_inference_steps})
    factory = AttackFactory.of(options, config.instance_prompt, config.class_prompt)
    for entry in available_entries(entries, models, factory, base)[0]:
        check_on_model(entry.spec, factory.make(entry.spec, seed=0), base, options.num_inference_steps)


def has_finished_attacks(output: Path) -> bool:
    """Whether an output folder keeps a finished attack or trial, so that the same command goes on from there."""
    return any(finished_cells(output / name) for name in (CELLS, SEARCH_CELLS, PHOTO_CELLS))


def claim_audit_dir(config: AuditJobConfig | AttackConfig, held: ExitStack) -> Path:
    """Claim the output folder. Finished attacks of an audit with the same options are kept.

    Args:
        held: keeps other runs out of the folder until it is closed.

    Raises:
        UserError: the folder holds an audit with other options, or files that are not from this program; or another run
            is at work in it.
    """
    output = Path(config.output_dir)
    check_made_by(config)
    claim_output_dir(output, overwrite=goes_on(config) or config.overwrite_output_dir, until=held)
    for stale in (RESULTS, ATTACK, REPORT, LIKENESS, PICTURES):
        delete(output / stale)
    write_text(output / CONFIG, resolved(config))
    return output
