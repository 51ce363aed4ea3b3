"""`apdm harden`, the main job: it hardens a pipeline against the people in the photos, and can audit the result.

`train_apdm.py` and `apdm harden` both call this file. It decides in which order the parts of the job run, and in which
process. The parts are in `hardening/`: `inputs` reads the input, `training` and `loop` train, `export` writes the
model, and `final_audit` measures.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator

from apdm.audit import read_model_results
from apdm.config import HardenConfig, config_hash
from apdm.config.groups.presets import preset_report
from apdm.core.devices import free_memory
from apdm.core.disk import CannotWrite
from apdm.core.errors import UserError
from apdm.core.logging import EVERY_PROCESS, get_logger
from apdm.core.memory import peak_memory
from apdm.core.signals import RESUME
from apdm.core.stages import Stages
from apdm.distributed.launch import SHARDED, EngineKind, engine_kind, make_accelerator, stop_on_signals_or_loss
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker, require_tracker
from apdm.export.layout import IMAGES, MODEL, RESULTS
from apdm.export.manifest import write_manifest
from apdm.families import Family, load_family
from apdm.jobs.common.base_model import load_base_and_start
from apdm.jobs.common.face_networks import face_networks
from apdm.jobs.common.prepare import photos_of_datasets, prepare_process, warn_about_prompts
from apdm.jobs.common.results import HardenResult
from apdm.jobs.common.stages import HARDENING, PHOTOS, PREPARING, harden_stages
from apdm.jobs.common.tracked import start_tracker
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.engine_options import check_engine
from apdm.jobs.hardening.export import delete_last_checkpoint, export, name_checkpoint
from apdm.jobs.hardening.final_audit import audit_hardened, load_audit_inputs
from apdm.jobs.hardening.inputs import HardenInputs
from apdm.jobs.hardening.loop import run_training
from apdm.jobs.hardening.plan import harden_plan
from apdm.jobs.hardening.probe import make_probe
from apdm.jobs.hardening.training import Training
from apdm.jobs.hardening.validation import Validator
from apdm.jobs.photos.job import PhotoJob
from apdm.jobs.planning.plan import show_plan
from apdm.jobs.push import push_hardened, reserve_repository
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import to_device

logger = get_logger(__name__)


def harden(config: HardenConfig, *, command: str | None = None, part: bool = True) -> HardenResult:
    """Harden a model. If the options ask for it, also protect the photos and audit the hardened model.

    The command `apdm harden` and the Python function `apdm.harden` both run this function. If several processes were
    launched, the main process alone reads photos, draws class pictures, validates, writes and exports. The other
    processes take part in the training. They also take part in the photo protection and the audit if they can read the
    main process's files.

    Args:
        command: the command line, for the summary and the report; None if there is none.
        part: whether to end the process group of a distributed run. False if the processes have more to do together.

    Returns:
        The folders that were written, the number of outer steps, and the audit's results if there was an audit.

    Raises:
        UserError: some input cannot be used, which is found before any long work starts; or the training fails.
        Interrupted: the user asked to stop. If this happened during the training, a checkpoint was written.
    """
    prepare_process(config.num_threads)
    output = Path(config.output_dir)
    accelerator = make_accelerator(config.mixed_precision)
    device = accelerator.device
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    claimed = False  # whether the output folder is this run's

    def kept() -> bool:
        """Whether there is a checkpoint to go on from: of this run, or of the one that it continues."""
        return bool((claimed or config.resume_from_checkpoint) and checkpoints.find_all(output))

    with stop_on_signals_or_loss(processes, go_on=RESUME, kept=kept) as stop, ExitStack() as held:
        kind = processes.all_or_raise(lambda: check_options(config, accelerator, processes))
        processes.on_main(lambda: reserve_repository(config))
        stages = held.enter_context(harden_stages(config))
        stages.begin(PREPARING)
        inputs = read_inputs(config, processes, held)
        checkpoint, facts = processes.broadcast(lambda: inputs.claim_output(held))
        claimed = True
        tracker = processes.on_main(lambda: start_tracker(config, held))
        if processes.is_main:
            show_plan(harden_plan(config, inputs, checkpoint, kind=kind, processes=processes, device=device))
        training, validator = make_training(config, accelerator, processes, kind, inputs, tracker)
        base, hardened = inputs.base, training.hardened
        stages.begin(HARDENING)
        with stop.postponed():
            trained = run_training(training, validator, device, tracker, facts=facts, checkpoint=checkpoint, stop=stop)
        peak = peak_memory(device)
        del training
        free_memory()
        try:
            moved = processes.on_main(lambda: export(config, base, hardened, trained.steps, device, about=inputs.about))
        except CannotWrite as fault:
            raise name_checkpoint(fault, trained.checkpoint, output) from None
        if config.image_layer.enabled or config.audit.enabled:
            protect_and_audit(config, hardened, inputs, processes, device, stages, tracker=tracker, command=command)
        processes.on_main(lambda: write_manifest(output, config_hash=config_hash(config), **inputs.about))
        processes.on_main(lambda: delete_last_checkpoint(config, trained.checkpoint, checkpoint))
        pushed = processes.on_main(lambda: push_hardened(config))
        if part:
            accelerator.end_training()
    audited = config.audit.enabled and processes.is_main
    return HardenResult(
        output_dir=output,
        model_dir=output / MODEL,
        steps=trained.steps,
        seconds=trained.seconds,
        peak_memory_bytes=peak,
        moved=moved,
        image_dir=output / IMAGES if config.image_layer.enabled else None,
        results=read_model_results(output / RESULTS) if audited else None,
        pushed=pushed,
    )


def check_options(config: HardenConfig, accelerator: Accelerator, processes: ProcessGroup) -> EngineKind:
    """Check the options against the launched engine, and check that the objective can be made.

    Returns:
        The kind of the launched engine.

    Raises:
        UserError: the engine does not support the options, or the objective is unknown or has wrong options.
    """
    kind = engine_kind(accelerator)
    check_engine(config, kind, processes.size)
    make_objective(config.objective)
    require_tracker(config.report_to)
    if config.preset:
        logger.info(preset_report(config))
    warn_about_prompts(
        config.instance_prompt,
        config.class_prompt,
        audit=config.audit.prompts if config.audit.enabled else (),
        validation=config.validation.prompts if config.validation.steps else (),
    )
    return kind


def read_inputs(config: HardenConfig, processes: ProcessGroup, held: ExitStack) -> HardenInputs:
    """Load the models in every process. The main process also reads and checks the photos, judges and networks.

    Args:
        held: keeps photos that come from a dataset on the disk until it is closed.
    """
    processes.on_main(lambda: held.enter_context(photos_of_datasets(config)))
    base, start = processes.all_or_raise(lambda: load_base_and_start(config))
    inputs = processes.on_main(lambda: HardenInputs.read(config, base, start))
    return inputs or HardenInputs(config=config, base=base, start=start)


def make_training(
    config: HardenConfig,
    accelerator: Accelerator,
    processes: ProcessGroup,
    kind: EngineKind,
    inputs: HardenInputs,
    tracker: Tracker | None,
) -> tuple[Training, Validator]:
    """Encode the photos, and make the training and the validation. The main process encodes for all.

    Args:
        kind: the kind of the launched engine.
        inputs: the models, and in the main process the photos.
    """
    base, device = inputs.base, accelerator.device
    if processes.is_main:
        base.pipeline.to(device)
    # The data is moved to the CPU before it is sent. Otherwise every process would unpack it on GPU 0.
    groups = processes.broadcast(lambda: [to_device(group, "cpu") for group in inputs.encode()])
    hardened = place_models(config, base, inputs.start, kind, device)
    reference = base.denoiser.eval().requires_grad_(False)
    protected, consenting, earlier = (to_device(group, device) for group in groups)
    training = Training(config, accelerator, processes, reference, hardened, protected, consenting, earlier)
    warn_of_people_without_attacker(config, training)
    return training, Validator(config, hardened, make_probe(config, inputs.audit_inputs, protected), tracker)


def place_models(config: HardenConfig, base: Family, start: Family, kind: EngineKind, device: torch.device) -> Family:
    """Move the models to the device that the engine needs.

    Args:
        start: the model to harden; may be the same object as `base`.

    Returns:
        The family to harden, whose denoiser is a copy of `start`'s denoiser.
    """
    if config.memory.offload and not config.validation.steps:
        base.pipeline.to("cpu")
    base.denoiser.to("cpu" if kind in SHARDED else device)
    hardened = base.with_denoiser(copy.deepcopy(start.denoiser).to(base.denoiser.device))
    if config.save_dtype is not None:
        hardened = hardened.with_denoiser_saved_in(torch.float32)
    if config.memory.reference_dtype != "float32":
        base.denoiser.to("cpu")  # the training makes its own copy of phi, so this one is not needed before the audit
    return hardened


def warn_of_people_without_attacker(config: HardenConfig, training: Training) -> None:
    """Log a warning if the run is so short that no attacker is simulated for some of the people."""
    if missed := training.count_people_without_attacker():
        mend = "raise max_train_steps" + (" or pool.size, or lower pool.depth" if config.pool.size else "")
        people = len(training.attackers.people)
        logger.warning("%d of %d people will meet no simulated attacker; %s", missed, people, mend)


def protect_and_audit(
    config: HardenConfig,
    hardened: Family,
    inputs: HardenInputs,
    processes: ProcessGroup,
    device: torch.device,
    stages: Stages,
    *,
    tracker: Tracker | None,
    command: str | None,
) -> None:
    """Protect the photos and audit the hardened model, or do one of the two, as the options say.

    The processes share the work. A process that cannot read the exported model or the photos, for example because it
    runs on another machine, logs a warning and takes no part.

    Args:
        hardened: the hardened model. It is complete in the main process only; the others load the exported model.
        inputs: what the main process has read. The other processes read the same files themselves.

    Raises:
        UserError: a saved photo is not within the budget of its original, or the main process cannot read its input.
    """
    output, base = Path(config.output_dir), inputs.base
    photo_job, audit_inputs = inputs.photo_job, inputs.audit_inputs
    if not processes.is_main:
        try:
            faces = face_networks(config)
            photo_job = PhotoJob.load(config, faces, quiet=True) if config.image_layer.enabled else None
            audit_inputs = load_audit_inputs(config, faces) if config.audit.enabled else None
            hardened = load_family(output / MODEL, family=config.family, variant=hardened.saved_variant)
        except UserError as error:
            message = "process %d leaves photos and audit to the others: %s"
            logger.warning(message, processes.index, error, extra=EVERY_PROCESS)
            processes.subgroup(False)
            return
    sharing = processes.subgroup(True)
    if sharing is None:
        return
    base.pipeline.to(device)
    if photo_job is not None:
        stages.begin(PHOTOS)
        hardened.denoiser.to("cpu")  # it is not needed there, and surrogates take much memory
        photo_job.run(base, output, sharing, tracker=tracker, command=command)
    hardened.pipeline.to(device)
    if config.audit.enabled and audit_inputs is not None:
        audit_hardened(config, audit_inputs, base, hardened, sharing, stages, tracker=tracker, command=command)
