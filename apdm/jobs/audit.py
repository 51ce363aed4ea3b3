"""`apdm audit`: run a suite of attacks on models and people, and write results.json and report.html.

`apdm harden` with `audit.enabled` uses `audit_and_report` at its end. What an audit reads first is in
`audit_inputs.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from apdm.audit.model_audit import attack_and_judge
from apdm.audit.models import load_models
from apdm.audit.people import PROTECTED, PhotoFolders
from apdm.audit.photo_attacks import PhotoAttackSpecs, PhotoAudit, photos_and_changes
from apdm.audit.photo_verdict import doubts_about_judges, judge_photo_attacks
from apdm.audit.plan import AuditPlan
from apdm.audit.protected_photos import ProtectedPhotos, load_protected_photos
from apdm.audit.results import ImageLayer, ModelFile, Results, write_results
from apdm.audit.same_faces import check_faces
from apdm.audit.store import CellStore, finished_cells
from apdm.audit.suites import AttackFactory, Entry, available_entries, choose_entries
from apdm.audit.thresholds import with_thresholds
from apdm.audit.verdict import doubtful_thresholds, one_encoder
from apdm.config import AuditJobConfig, to_yaml
from apdm.core.errors import Faults
from apdm.core.files import MARKER, claim_output_dir, delete, model_hash, write_text
from apdm.core.pictures import grid, save_png, to_pil
from apdm.core.signals import stop_on_signals
from apdm.data.class_images import ClassImages
from apdm.data.photo_sets import Chosen, has_sets
from apdm.data.separate_photos import PhotoSet, check_separate
from apdm.data.subjects import load_images
from apdm.distributed.launch import join_processes
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import ATTACKER_CLASS_IMAGES, CELLS, CONFIG, PHOTO_CELLS, PICTURES, REPORT, RESULTS
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.families.miniature import is_miniature
from apdm.families.prompts import check_distinct, check_prompts
from apdm.jobs.audit_inputs import AuditInputs, load_inputs, warn_if_too_short
from apdm.jobs.face_networks import face_networks
from apdm.jobs.plan import audit_plan, show_plan
from apdm.jobs.prepare import check_resolution, configuration_hash, keep_apart, prepare_process, warn_about_prompts
from apdm.jobs.results import AuditResult
from apdm.metrics.judges import Judges
from apdm.report.page import write_report

KEPT = "finished attacks are kept; the same command goes on"
COLUMNS = 4  # of the sheets of pictures
ATTACKER_SEED = 1_000_000  # added to the seed, so that the attacker's class pictures differ from the defence's


def audit_models(config: AuditJobConfig, *, command: str | None = None) -> AuditResult:
    """Attack base and hardened model, and judge the pictures that the attackers' models draw.

    The command `apdm audit` and the Python function `apdm.audit` both run this function, in one process or in the
    processes that `accelerate launch` started.

    Args:
        config: the options.
        command: the command line that was given, for results.json.

    Returns:
        The output folder, the verdict, and in the main process the content of results.json.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept, and the same call goes on from there.
    """
    output = Path(config.output_dir)

    def kept() -> bool:
        return any(finished_cells(output / name) for name in (CELLS, PHOTO_CELLS))

    processes, device = join_processes()
    with stop_on_signals(KEPT, kept=kept), ExitStack() as held:
        return _audit(config, command, processes, device, held)


def _audit(
    config: AuditJobConfig, command: str | None, processes: ProcessGroup, device: torch.device, held: ExitStack
) -> AuditResult:
    """Do what `audit_models` does. `held` keeps other runs out of the output folder until it is closed."""
    prepare_process(config.num_threads)
    warn_about_prompts(config.instance_prompt, config.class_prompt, audit=config.prompts)
    plan, inputs, photos = processes.main_first(lambda: load_audit(config, command))
    judges = inputs.judges
    processes.on_main(lambda: check_faces(photo_sets(inputs, photos), judges.encoders, judges.face_score))
    output = processes.broadcast(lambda: _claim(config, held))
    show_plan(audit_plan(config, plan, photos, processes=processes, device=device))
    warn_if_too_short(config, plan.entries)
    for model in plan.models.values():
        model.pipeline.to(device)
    results = audit_and_report(
        plan,
        class_images=attacker_class_images(
            plan,
            variant=config.variant,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            resolution=config.resolution,
        ),
        photo_attacks=inputs.photo_attacks,
        photos=photos,
        output=output,
        processes=processes,
        earlier=config.reuse_audits,
    )
    verdict = processes.broadcast(lambda: cast(Results, results).verdict)  # the main process has the results
    return AuditResult(output_dir=output, verdict=verdict, results=results)


def attacker_class_images(
    plan: AuditPlan, *, variant: str | None, num_inference_steps: int, guidance_scale: float, resolution: int
) -> ClassImages:
    """Return how the base draws the class pictures that the attacker uses for prior preservation."""
    return ClassImages(
        prompt=plan.class_prompt,
        model=plan.files["base"].sha256,
        variant=variant,
        configuration=configuration_hash(plan.models["base"]),
        seed=plan.seed + ATTACKER_SEED,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        resolution=resolution,
    )


# -- the audit itself ----------------------------------------------------------------------------------------


def audit_and_report(
    plan: AuditPlan,
    *,
    class_images: ClassImages,
    photo_attacks: PhotoAttackSpecs | None,
    photos: ProtectedPhotos | None,
    output: Path,
    processes: ProcessGroup,
    earlier: Sequence[str] = (),
) -> Results | None:
    """Attack the models and the protected photos, measure, and write results.json, report.html and the pictures.

    Finished attacks are kept in `output`. If an audit was stopped, the same call continues it.

    Args:
        plan: the models, the people, the attacks and the measurements.
        class_images: how the attacker's class pictures are drawn.
        photo_attacks: the attacks on protected photos; None to attack no photos.
        photos: the protected photos and their originals; None to attack no photos.
        output: the output folder.
        processes: the processes that share the attacks. All must see the same files.
        earlier: output folders of earlier audits, whose finished attacks are reused.

    Returns:
        The results in the main process, None in the others.
    """
    quiet = not processes.is_main
    plan = replace(plan, class_images=asdict(class_images))
    base, batch_size = plan.models["base"], plan.drawing.batch_size

    def prior() -> tuple[Posterior, Judges]:
        folder, count = output / ATTACKER_CLASS_IMAGES, plan.num_class_images
        paths = class_images.ensure(base, folder, count, batch_size=batch_size, replace=True, show_progress=not quiet)
        pictures = load_images(paths, class_images.resolution)
        with torch.no_grad():
            latents = encode_images(base, pictures, batch_size=batch_size)
        return latents, with_thresholds(plan.judges, plan.subjects, pictures)

    latents, judges = processes.main_first(prior)
    plan = replace(plan, judges=judges)
    store = _store(output, CELLS, processes, earlier)
    done = attack_and_judge(plan, latents, store=store, processes=processes, show_progress=not quiet)
    layer = None
    if photo_attacks is not None and photos is not None:
        store = _store(output, PHOTO_CELLS, processes, earlier)
        layer = _attack_photos(plan, latents, photo_attacks, photos, store, processes)
    if done is None:
        return None
    results, pictures = done
    if layer is not None:
        limits, misled = plan.thresholds, layer[0].misled_judges or []
        outcomes = judge_photo_attacks(
            layer[0].attacks,
            results.strangers,
            max_match_rate=limits.max_match_rate,
            max_likeness_over_strangers=limits.max_likeness_over_strangers,
            doubts=[
                *one_encoder(results.judges),
                *doubtful_thresholds(results.judges),
                *doubts_about_judges(results.judges.encoders, misled),
            ],
        )
        results = replace(results, image_layer=replace(layer[0], by_attack=outcomes))
        pictures |= layer[1]
    _write(results, pictures, output)
    return results


def _store(output: Path, name: str, processes: ProcessGroup, earlier: Sequence[str]) -> CellStore:
    return CellStore(output / name, process=processes.index, earlier=[Path(folder) / name for folder in earlier])


def _attack_photos(
    plan: AuditPlan,
    class_images: Posterior,
    specs: PhotoAttackSpecs,
    photos: ProtectedPhotos,
    store: CellStore,
    processes: ProcessGroup,
) -> tuple[ImageLayer, dict[str, Tensor]] | None:
    """Attack the protected photos.

    Returns:
        The part of the results that is about photos, and its pictures; None in all processes but the main one.
    """
    holdout = {person.id: person.references for person in plan.subjects.protected}
    done = PhotoAudit.of(plan, class_images, specs).run(photos.pairs, holdout, store=store, processes=processes)
    if done is None:
        return None
    rows, pictures = done
    if plan.show_photos:
        pictures |= photos_and_changes(photos.pairs)
    misled = [one.name for one in plan.judges.describe().encoders if photos.perturbation.has_misled(one)]
    return ImageLayer(**vars(photos.perturbation), attacks=rows, misled_judges=misled), pictures


def _write(results: Results, pictures: Mapping[str, Tensor], output: Path) -> None:
    """Write results.json, the pictures as sheets, and report.html."""
    write_results(results, output / RESULTS)
    for name, images in pictures.items():
        save_png(grid(images, COLUMNS), output / PICTURES / f"{name}.png")
    shown = {name: [to_pil(image) for image in images] for name, images in pictures.items()}
    write_report(results, output / REPORT, shown)


# -- the parts of `apdm audit` -------------------------------------------------------------------------------


def load_audit(config: AuditJobConfig, command: str | None) -> tuple[AuditPlan, AuditInputs, ProtectedPhotos | None]:
    """Read and check all input, before anything is written."""
    entries = choose_entries(config.suite, config.attacks, config.instance_prompt)
    names = {name: getattr(config, name) for name in ("base", "hardened", "placebo", "sibling", "hardened_sibling")}
    paths = {name: path for name, path in names.items() if path is not None}
    folders = PhotoFolders.below(config.subjects, config)
    given = {f"the {role} photos in": folder for role, folder in vars(folders).items() if folder}

    def read_inputs() -> AuditInputs:
        inputs = load_inputs(
            config,
            folders,
            entries=entries,
            models=paths,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            resolution=config.resolution,
            with_photos=config.protected_photos is not None,
            subject_kind=config.subject_kind,
            faces=face_networks(config),
            miniature=is_miniature(paths["base"], config.single_file_config),
            allow_pickle=config.allow_pickle,
        )
        check_separate(inputs.subjects.sets)
        return inputs

    def read_models() -> dict[str, Family]:
        models = load_models(
            paths,
            family=config.family,
            variant=config.variant,
            allow_pickle=config.allow_pickle,
            single_file_config=config.single_file_config,
            as_stored=config.dry_run,
        )
        check_resolution(models["base"], config.resolution)
        check_prompts_of(config, models["base"], entries, paths)
        return models

    with Faults() as faults:
        faults.of(lambda: keep_apart(given, output_dir=config.output_dir))
        inputs, models = faults.of(read_inputs), faults.of(read_models)
    plan = AuditPlan.of(
        config,
        models=models,
        subjects=inputs.subjects,
        judges=inputs.judges,
        entries=entries,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        seed=config.seed,
        batch_size=config.sample_batch_size,
        files={name: model_file(path, models[name]) for name, path in paths.items()},
        command=command,
    )
    photos = None
    if inputs.photo_attacks is not None and config.protected_photos is not None:
        photos = load_protected_photos(
            originals_of(config.instance_data_dir, config.subjects),
            config.protected_photos,
            config.resolution,
            known=[person.id for person in inputs.subjects.protected],
            chosen=Chosen(config.protected_set),
        )
        inputs.photo_attacks.check(models["base"])
        check_separate(photo_sets(inputs, photos))
    return plan, inputs, photos


def originals_of(instance_data_dir: str | None, subjects: str) -> str:
    """Return the folder of the originals of protected photos: the one that was given, or one among the subjects."""
    return instance_data_dir or (subjects if has_sets(subjects) else str(Path(subjects) / PROTECTED))


def check_prompts_of(config: AuditJobConfig, base: Family, entries: Sequence[Entry], models: Collection[str]) -> None:
    """Check the prompts of the audit and of each attack.

    Raises:
        UserError: the model cannot read a prompt, or cannot tell an attack's prompt from the class prompt.
    """
    drawn = {"prompts": config.prompts, "edit_prompt": [config.edit_prompt] if config.edit_prompt else []}
    learned = {"instance_prompt": [config.instance_prompt]}
    check_prompts(base, learned=learned, class_prompt=config.class_prompt, drawn=drawn)
    factory = AttackFactory.of(config, config.instance_prompt, config.class_prompt)
    for entry in available_entries(entries, models, factory)[0]:
        attack: Any = factory.make(entry.spec, seed=0)
        while hasattr(attack, "attack"):  # a staged attack holds another one
            attack = attack.attack
        class_prompt = getattr(attack, "class_prompt", config.class_prompt)
        check_distinct(base, f"{entry.spec}: instance_prompt", attack.instance_prompt, class_prompt)


def photo_sets(inputs: AuditInputs, photos: ProtectedPhotos | None) -> list[PhotoSet]:
    """All photos of an audit."""
    return [*([] if photos is None else [photos.originals]), *inputs.subjects.sets]


def model_file(path: str, model: Family) -> ModelFile:
    """Return path and hash of a model for the results. `path` is the path or name that the user gave."""
    return ModelFile(path=path, sha256=model_hash(model.source or Path(path)))


def _claim(config: AuditJobConfig, held: ExitStack) -> Path:
    """Claim the output folder. Finished attacks of an audit with the same options are kept.

    Args:
        config: the options.
        held: keeps other runs out of the folder until it is closed.

    Raises:
        UserError: the folder holds an audit with other options, or files that are not from this program; or another run
            is at work in it.
    """
    output = Path(config.output_dir)
    claim_output_dir(output, overwrite=goes_on(config) or config.overwrite_output_dir, until=held)
    for stale in (RESULTS, REPORT, PICTURES):
        delete(output / stale)
    write_text(output / CONFIG, _resolved(config))
    return output


def goes_on(config: AuditJobConfig) -> bool:
    """Whether the output folder is that of an audit with the same options."""
    note = Path(config.output_dir) / CONFIG
    marked = (note.parent / MARKER).exists() and note.exists()
    return marked and note.read_text(encoding="utf-8") == _resolved(config)


def _resolved(config: AuditJobConfig) -> str:
    return to_yaml(replace(config, overwrite_output_dir=False, reuse_audits=[]))
