"""The dry run: a job reads and checks all its input, says what it would do, and ends. Nothing is written or drawn.

A dry run uses the code of the job itself. It goes on after a mistake, so that the user is told of all that is missing
or wrong at once. Models are loaded in the float types of their files, which takes the least time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from apdm.audit.inputs.face_checks import check_faces, show_faces
from apdm.audit.results.common import Verdict
from apdm.config import AttackConfig, AuditJobConfig, HardenConfig, PerturbConfig
from apdm.core.disk import picture_size
from apdm.core.errors import Faults
from apdm.core.files import check_output_dir
from apdm.core.signals import stop_on_signals
from apdm.core.terminal import count
from apdm.data.drawn_pictures import count_drawn
from apdm.data.photo_files import name_some
from apdm.data.separate_photos import PhotoSet, Role
from apdm.distributed.launch import engine_kind, join_processes, make_accelerator
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.recompute import passes_of_training
from apdm.export.layout import IMAGES, MODEL, PARTNERS
from apdm.faces import FaceScore
from apdm.faces.detector_score import DetectorScore
from apdm.families import Family
from apdm.jobs import attack, audit, perturb
from apdm.jobs.auditing.inputs import warn_if_too_short
from apdm.jobs.common.base_model import load_base_and_start
from apdm.jobs.common.class_pictures import class_pictures_to_draw, own_class_files
from apdm.jobs.common.first_checks import check_given
from apdm.jobs.common.prepare import Resumable, goes_on, photos_of_datasets, prepare_process, warn_about_prompts
from apdm.jobs.common.results import AttackResult, AuditResult, HardenResult, PerturbResult
from apdm.jobs.harden import check_options
from apdm.jobs.hardening.files import read_files
from apdm.jobs.hardening.inputs import HardenInputs, check_base
from apdm.jobs.hardening.plan import harden_plan
from apdm.jobs.hardening.validation import pictures_of_validation
from apdm.jobs.photo_audit import load_photo_audit
from apdm.jobs.planning import resources
from apdm.jobs.planning.audit_work import AuditWork
from apdm.jobs.planning.plan import Rows, audit_plan, perturb_plan, photo_audit_plan, show_plan
from apdm.jobs.push import check_hub

Row = Callable[[], str | None]
Plan = tuple[Rows, Mapping[str, Row]]  # the rows that the job itself shows, and those that only a dry run has


def dry_run(config: Any) -> Any:
    """Check all input of the job that a configuration is for, and show its plan.

    Returns:
        The result of a job that has done nothing.

    Raises:
        UserError: something is missing or wrong. All that was found is told.
    """
    jobs: dict[type, Callable[[Any], Any]] = {
        HardenConfig: harden,
        PerturbConfig: protect_photos,
        AuditJobConfig: audit_models,
        AttackConfig: attack_model,
    }
    return jobs[type(config)](config)


def harden(config: HardenConfig) -> HardenResult:
    """`dry_run` of `apdm harden`. Returns the folders that the run would write, and 0 steps."""
    prepare_process(config.num_threads)
    output = Path(config.output_dir)
    accelerator = make_accelerator(config.mixed_precision)
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    kind, device = engine_kind(accelerator), accelerator.device

    def read(faults: Faults) -> Plan | None:
        faults.of(lambda: check_options(config, accelerator, processes))
        faults.of(lambda: check_hub(config))
        inputs = read_harden(config, faults)
        if inputs is None:
            return None
        checkpoint = faults.of(inputs.check_output)
        rows = harden_plan(config, inputs, checkpoint, kind=kind, processes=processes, device=device)
        return rows, harden_rows(config, inputs, device, processes.size)

    check_and_show(config, processes, read)
    images = output / IMAGES if config.image_layer.enabled else None
    return HardenResult(output_dir=output, model_dir=output / MODEL, steps=0, image_dir=images)


def check_and_show(
    config: HardenConfig | Resumable, processes: ProcessGroup, read: Callable[[Faults], Plan | None]
) -> None:
    """Check what the options of a job name, read its input, and show its plan. The main process does it.

    Args:
        read: reads and checks the input, and returns the plan; None if a part of the input is missing. It keeps
            mistakes in the faults that it is given. The photos of datasets lie in their folders meanwhile.

    Raises:
        UserError: something is missing or wrong. All that was found is told.
    """

    def check() -> None:
        with stop_on_signals(kept=lambda: False), ExitStack() as held, Faults() as faults:
            faults.of(lambda: check_given(config))
            if isinstance(config, HardenConfig | PerturbConfig):
                held.enter_context(photos_of_datasets(config, faults))
            plan = read(faults)
            if plan is not None:
                rows, more = plan
                # A row that cannot be made, because something is wrong, is left out.
                show_plan(rows | {name: faults.of(row) for name, row in more.items()})

    processes.on_main(check)


def read_harden(config: HardenConfig, faults: Faults) -> HardenInputs | None:
    """Read all input of a hardening run, as far as it can be used. Mistakes are kept in `faults`.

    Returns:
        The input; None if a part of it is missing.
    """
    models = faults.of(lambda: load_base_and_start(config))
    files = faults.of(lambda: read_files(config))
    own = faults.of(lambda: check_base(config, models[0])) if models is not None else None
    if models is not None and files is not None and own is not None:
        return faults.of(lambda: HardenInputs.of(config, files, own, *models))
    if files is not None:
        faults.of(lambda: files.check_people(own or []))
    return None


def harden_rows(config: HardenConfig, inputs: HardenInputs, device: torch.device, processes: int) -> dict[str, Row]:
    """Rows of the plan that only a dry run has."""
    base, half = inputs.base, config.mixed_precision != "no"
    cost = resources.cost_of_pass(base, config.instance_prompt, config.resolution, half=half)
    drawn = class_pictures_to_draw(config, inputs.own_class_pictures)
    partners = inputs.drawn_partners - count_drawn(Path(config.output_dir) / PARTNERS, inputs.drawn_partners)
    how = config.num_inference_steps, config.guidance_scale, base
    passes = {
        "for hardening": resources.training_passes(config),
        "for validation": validation_passes(config, base),
        "for class pictures": resources.drawing_passes(drawn + partners, *how),
        "for variety.photos": resources.variety_passes(config.variety.photos, inputs.encoded_photos),
    }
    rows: dict[str, Row] = {
        "photos kept": lambda: resources.photos_kept(_photo_sets(inputs)),
        "faces seen": lambda: _faces(inputs),
        "training memory": lambda: resources.harden_memory(config, base, cost, device, processes),
    }
    # Photos are protected, and models are attacked, in float32.
    plain = resources.cost_of_pass(base, config.instance_prompt, config.resolution, half=False) if half else cost
    if inputs.photo_job is not None:
        job = inputs.photo_job
        passes |= resources.photo_passes(job)
        rows["photo memory"] = lambda: resources.photo_memory(job, base, plain, device)
    if config.audit.enabled and inputs.audit_inputs is not None:
        audited = inputs.final_audit(inputs.audit_inputs)
        passes |= audited.passes
        rows["audit memory"] = lambda: resources.audit_memory(
            config.audit, base, plain, device, attacks=audited.attacks
        )
    return rows | {
        "work": lambda: resources.work(cost, passes, device),
        "drawn": lambda: resources.pictures_drawn(drawn, partners),
        "disk": lambda: resources.disk(Path(config.output_dir), inputs.sizes()),
        "written": lambda: resources.written(config, partners=bool(inputs.drawn_partners)),
    }


def validation_passes(config: HardenConfig, family: Family) -> float:
    """Forward passes of all validations: their pictures, and the training of their probes."""
    options, attack = config.validation, config.audit
    if not options.steps:
        return 0
    how = options.num_inference_steps, options.guidance_scale, family
    samples = options.probe_steps * attack.train_batch_size * (2 if attack.prior_loss_weight else 1)
    trained = passes_of_training(recomputed=attack.gradient_checkpointing)
    each = resources.drawing_passes(pictures_of_validation(config), *how) + trained * samples
    return config.max_train_steps // options.steps * each


def _photo_sets(inputs: HardenInputs) -> list[PhotoSet]:
    """All photos of a hardening run."""
    sets = [*inputs.photos.sets, *inputs.consenting.sets, *inputs.earlier.sets]
    return sets + list(inputs.audit_inputs.subjects.sets if inputs.audit_inputs is not None else [])


def _faces(inputs: HardenInputs) -> str | None:
    """How many photos show a face, if the run looks at faces at all."""
    score: FaceScore | None
    if inputs.audit_inputs is not None:
        score = inputs.audit_inputs.judges.face_score
    elif inputs.photo_job is not None and inputs.photo_job.faces is not None:
        score = DetectorScore(inputs.photo_job.faces.detector)
    else:
        return None
    return faces_in_squares(_photo_sets(inputs), score)


@torch.no_grad()
def faces_in_squares(sets: Sequence[PhotoSet], face_score: FaceScore | None) -> str | None:
    """Look for a face in every photo, as a trainer sees it: in the square that is cut out of it.

    Whether too few photos of a person show one is checked elsewhere, as the run itself checks it.

    Args:
        sets: the photos of all folders. Class pictures and safe partners are not looked at.
        face_score: decides whether a photo shows a face; None for subjects that have none.

    Returns:
        How many photos show one, and the names of the others; None if faces are not looked for.
    """
    if face_score is None:
        return None
    shown: dict[Path, bool] = {}  # some photos come twice, for hardening and for the audit
    for photos in (found for found in sets if found.role not in (Role.CLASS, Role.SAFE)):
        for files, images in photos.by_person:
            shown.update(zip(files, show_faces(images, face_score).tolist(), strict=True))
    without = [path for path, has_face in shown.items() if not has_face]
    text = f"in {len(shown) - len(without)} of {len(shown)} photos by {face_score.name}"
    return text + (f"; none in {name_some(without)}" if without else "")


def protect_photos(config: PerturbConfig) -> PerturbResult:
    """`dry_run` of `apdm perturb`. Returns the folders that the run would write."""
    prepare_process(config.num_threads)
    processes, device = join_processes()
    output = Path(config.output_dir)

    def read(faults: Faults) -> Plan | None:
        warn_about_prompts(config.instance_prompt, config.class_prompt)
        found = faults.of(lambda: perturb.load_perturb(config, quiet=False))
        faults.of(lambda: check_output(config))
        if found is None:
            return None
        job, family = found
        cost = resources.cost_of_pass(family, config.instance_prompt, config.resolution, half=False)
        drawn = 0
        if job.protection.needs_class_pictures:
            drawn = class_pictures_to_draw(config, len(own_class_files(config, family)))
        how = config.num_inference_steps, config.guidance_scale, family
        passes = resources.photo_passes(job) | {"for class pictures": resources.drawing_passes(drawn, *how)}
        sizes = {"protected photos": job.saved.missing_size(output / IMAGES)}
        sizes["class pictures"] = drawn * picture_size(config.resolution**2)
        return perturb_plan(config, job, family, processes=processes, device=device), {
            "device memory": lambda: resources.photo_memory(job, family, cost, device),
            "work": lambda: resources.work(cost, passes, device),
            "drawn": lambda: f"{count(drawn, 'class picture')} of the model" if drawn else None,
            "disk": lambda: resources.disk(output, sizes),
        }

    check_and_show(config, processes, read)
    return PerturbResult(output_dir=output, image_dir=output / IMAGES)


def audit_models(config: AuditJobConfig) -> AuditResult:
    """`dry_run` of `apdm audit`. Returns a verdict that says that nothing was attacked."""
    prepare_process(config.num_threads)
    processes, device = join_processes()

    def read(faults: Faults) -> Plan | None:
        warn_about_prompts(config.instance_prompt, config.class_prompt, audit=config.prompts)
        faults.of(lambda: check_output(config))
        read_audit = _read_models if config.hardened is not None else _read_photos
        found = faults.of(lambda: read_audit(config, processes, device))
        if found is None:
            return None
        rows, work, sets = found
        sizes = {"pictures": work.pictures_size(Path(config.output_dir))}
        return rows, attack_rows(config, work, sets, sizes, device, faults)

    check_and_show(config, processes, read)
    nothing = Verdict(protected=False, reasons=["a dry run attacks nothing"], unreliable=[], notes=[], checks=[])
    return AuditResult(output_dir=Path(config.output_dir), verdict=nothing)


def _read_models(
    config: AuditJobConfig, processes: ProcessGroup, device: torch.device
) -> tuple[Rows, AuditWork, Sequence[PhotoSet]]:
    """Read the input of an audit of models. Returns the rows of its plan, its work, and all photos."""
    plan, inputs, photos = audit.load_audit(config, None)
    warn_if_too_short(config, plan.entries)
    entries, _ = plan.available()
    work = AuditWork.of_models(plan, entries, inputs.photo_attacks, photos.counts if photos is not None else {})
    rows = audit_plan(config, plan, photos, processes=processes, device=device)
    return rows, work, audit.photo_sets(inputs, photos)


def _read_photos(
    config: AuditJobConfig, processes: ProcessGroup, device: torch.device
) -> tuple[Rows, AuditWork, Sequence[PhotoSet]]:
    """The same as `_read_models` for an audit of photos alone."""
    plan, specs, photos = load_photo_audit(config, None)
    work = AuditWork(plan=plan, cells=[], class_sets=1, specs=specs, photos=photos.counts)
    rows = photo_audit_plan(config, plan, specs, photos, processes=processes, device=device)
    return rows, work, plan.subjects.sets


def attack_model(config: AttackConfig) -> AttackResult:
    """`dry_run` of `apdm attack`. Returns the output folder, without results."""
    prepare_process(config.num_threads)
    processes, device = join_processes()

    def read(faults: Faults) -> Plan | None:
        warn_about_prompts(config.instance_prompt, config.class_prompt, audit=config.prompts)
        faults.of(lambda: check_output(config))
        plan = faults.of(lambda: attack.load_attack(config, None))
        if plan is None:
            return None
        rows, sizes = attack.attack_plan(config, plan, processes, device), attack.sizes(config, plan)
        return rows, attack_rows(config, attack.work_of(plan), plan.subjects.sets, sizes, device, faults)

    check_and_show(config, processes, read)
    return AttackResult(output_dir=Path(config.output_dir))


def attack_rows(
    config: AuditJobConfig | AttackConfig,
    work: AuditWork,
    sets: Sequence[PhotoSet],
    sizes: Mapping[str, int],
    device: torch.device,
    faults: Faults,
) -> dict[str, Row]:
    """Check the faces in all photos, and return the rows that only a dry run has, of an audit or of `apdm attack`.

    Args:
        sets: all photos.
        sizes: {part: bytes} of what will be written.
    """
    plan, judges, model = work.plan, work.plan.judges, work.plan.models["base"]
    whose, nominal = "base", ""
    if isinstance(config, AttackConfig):
        whose, nominal = "model", "as dreambooth, which trains the whole denoiser: "
    cost = resources.cost_of_pass(model, config.instance_prompt, config.resolution, half=False)
    faults.of(lambda: check_faces(sets, judges.encoders, judges.face_score))
    return {
        "photos kept": lambda: resources.photos_kept(sets),
        "faces seen": lambda: faces_in_squares(sets, judges.face_score),
        "device memory": lambda: (
            nominal
            + resources.audit_memory(
                config.audit, model, cost, device, attacks=work.attacks, models=len(plan.models), shared=False
            )
        ),
        "work": lambda: resources.work(cost, work.passes, device),
        "drawn": lambda: f"{count(config.num_class_images, 'class picture')} of the {whose}",
        "disk": lambda: resources.disk(Path(config.output_dir), sizes),
    }


def check_output(config: Resumable) -> None:
    """Raise UserError if the output folder cannot be used, unless it is that of a run which this one continues."""
    check_output_dir(config.output_dir, overwrite=config.overwrite_output_dir or goes_on(config))
