"""The main job: subjects and a pipeline in, the same pipeline hardened out, and on request its audit.

`train_apdm.py` and `apdm harden` both end here. This file only joins the parts: what is computed is in `l2p`, what is
written in `export`, what is measured in `audit`.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks import Purifier
from apdm.attacks.registry import make_purifier
from apdm.audit import read_results
from apdm.config import HardenConfig, config_hash, to_yaml
from apdm.config.presets import preset_report
from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir, delete, model_hash, require_disk, write_text
from apdm.core.logging import EVERY_PROCESS, get_logger
from apdm.core.signals import stop_on_signals
from apdm.data.subjects import Subject, find_subjects, load_images
from apdm.distributed.launch import SHARDED, check_engine, kind_of, lost_processes, make_accelerator
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import CONFIG, IMAGES, MODEL, PERTURBATION, PICTURES, REPORT, RESULTS, SAMPLES
from apdm.export.manifest import write_manifest
from apdm.export.pipeline import check_single_file, export_model, export_size
from apdm.families import Family, Posterior, load_family
from apdm.families.encoding import encode_images
from apdm.jobs import checkpoint as checkpoints
from apdm.jobs.audit import AuditInputs
from apdm.jobs.checkpoint import Checkpoint
from apdm.jobs.final_audit import audit_hardened, load_audit_inputs, make_probe
from apdm.jobs.perturb import PhotoJob
from apdm.jobs.prepare import class_posterior, load_models, prepare_process
from apdm.jobs.results import HardenResult
from apdm.jobs.training import Training, protect
from apdm.jobs.validation import Validator
from apdm.protection.attackers import People
from apdm.protection.batches import ProtectionData, on_device

logger = get_logger(__name__)

GOING_ON = ("resume_from_checkpoint", "overwrite_output_dir", "max_train_steps")


@dataclass(frozen=True)
class Photos:
    """All pictures of a run, read and checked before any long work: subject id -> [N, 3, R, R] in [-1, 1]."""

    instance: dict[str, Tensor]
    safe: dict[str, Tensor]

    @staticmethod
    def load(subjects: Sequence[Subject], resolution: int) -> Photos:
        return Photos(
            {subject.id: load_images(subject.images, resolution) for subject in subjects},
            {subject.id: load_images(subject.safe, resolution) for subject in subjects if subject.safe is not None},
        )


def harden(config: HardenConfig, *, command: str | None = None) -> HardenResult:
    """Harden a model, and on request protect the photos and audit it; the code of `apdm harden` and of `apdm.harden`.

    Of several processes the main one alone reads photos, draws, validates, writes and exports. The others join it for
    the training, and for photos and audit if they see the same files.

    Args:
        config: the options.
        command: the command line that was given, as results.json tells it.

    Raises:
        UserError: bad input, found before any long work starts; or a loss that is not finite.
        Interrupted: the process was asked to stop, and a checkpoint is written.
    """
    prepare_process(config.num_threads)
    accelerator = make_accelerator(config)
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    output = Path(config.output_dir)
    with stop_on_signals() as stop, lost_processes(processes):
        kind = processes.all_or_raise(lambda: kind_of(accelerator))
        processes.all_or_raise(lambda: check_engine(config, kind, processes.size))
        if config.preset and processes.is_main:
            logger.info(preset_report(config))
        base, start = processes.all_or_raise(lambda: load_models(config))
        job = processes.on_main(lambda: Job.open(config, base, start))
        checkpoint, facts = processes.broadcast(lambda: _job(job).claim())
        if processes.is_main:
            base.pipeline.to(accelerator.device)
        # Sent as they are, tensors of one device would be unpacked on the same device by every process.
        groups = processes.broadcast(lambda: [on_device(group, "cpu") for group in _job(job).encode()])
        hardened = place(config, base, start, kind, accelerator.device)
        people, benign, earlier = (on_device(group, accelerator.device) for group in groups)
        training = Training(
            config,
            accelerator,
            processes,
            base.denoiser.eval().requires_grad_(False),
            hardened,
            people,
            benign,
            earlier,
        )
        if processes.is_main and (unmet := training.unmet()):
            logger.warning(unmet_report(config, unmet, len(training.attackers.people)))
        validator = job.validator(hardened, people) if job is not None else None
        with stop.patience():
            steps = protect(
                config,
                accelerator,
                processes,
                training,
                validator,
                output=output,
                facts=facts,
                checkpoint=checkpoint,
                stop=stop,
            )
        del training
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
        processes.on_main(lambda: _job(job).export(hardened, steps, accelerator.device))
        if config.image_layer.enabled or config.audit.enabled:
            protect_and_audit(config, base, hardened, job, processes, accelerator.device, command=command)
        processes.on_main(lambda: write_manifest(output, config_hash=config_hash(config)))
        accelerator.end_training()
    audited = config.audit.enabled and processes.is_main
    return HardenResult(
        output_dir=output,
        model_dir=output / MODEL,
        steps=steps,
        image_dir=output / IMAGES if config.image_layer.enabled else None,
        results=read_results(output / RESULTS) if audited else None,
    )


def protect_and_audit(
    config: HardenConfig,
    base: Family,
    hardened: Family,
    job: Job | None,
    processes: ProcessGroup,
    device: torch.device,
    *,
    command: str | None,
) -> None:
    """Protect the photos and audit the result, as far as the configuration asks for either.

    The processes share the work. A process that cannot read the exported model or the photos, for example because it
    runs on another machine, says so and takes no part.

    Args:
        job: the main process's job; None in the others, which read what they need themselves.
        hardened: the model that was hardened, complete in the main process only.
    """
    output = Path(config.output_dir)
    if job is not None:
        photo_job, audit_inputs = job.photo_job, job.audit_inputs
    else:
        try:
            photo_job = PhotoJob.load(config, quiet=True) if config.image_layer.enabled else None
            audit_inputs = load_audit_inputs(config) if config.audit.enabled else None
            hardened = load_family(output / MODEL, family=config.family)
        except UserError as error:
            message = "process %d leaves photos and audit to the others: %s"
            logger.warning(message, processes.index, error, extra=EVERY_PROCESS)
            processes.subgroup(False)
            return
    sharing = processes.subgroup(True)
    if sharing is None:
        return
    for family in (base, hardened):
        family.pipeline.to(device)
    if photo_job is not None:
        photo_job.run(base, output, sharing, command=command)
    if config.audit.enabled and audit_inputs is not None:
        audit_hardened(config, audit_inputs, base, hardened, sharing, command=command)


def unmet_report(config: HardenConfig, unmet: int, people: int) -> str:
    """One line on people whom the run is too short for."""
    mend = "raise max_train_steps or pool.size, or lower pool.depth" if config.pool.size else "raise max_train_steps"
    return f"{unmet} of {people} people will meet no simulated attacker; {mend}"


def place(config: HardenConfig, base: Family, start: Family, kind: str, device: torch.device) -> Family:
    """Put everything where the engine `kind` wants it; returns the family to be hardened, with `start`'s denoiser."""
    if config.memory.offload and not config.validation.steps:
        base.pipeline.to("cpu")
    base.denoiser.to("cpu" if kind in SHARDED else device)
    hardened = base.with_denoiser(copy.deepcopy(start.denoiser).to(base.denoiser.device))
    if config.memory.reference_dtype != "float32":
        base.denoiser.to("cpu")  # until the audit; phi is a copy
    return hardened


def _job(job: Job | None) -> Job:
    if job is None:
        raise RuntimeError("the job is the main process's")
    return job


@dataclass(frozen=True)
class Job:
    """What the main process does beside training: everything with photos and files."""

    config: HardenConfig
    base: Family
    start: Family
    photos: Photos
    consenting: Photos
    earlier: Photos
    audit_inputs: AuditInputs | None  # None where there is neither audit nor probe
    photo_job: PhotoJob | None
    output: Path
    goes_on: bool  # from a run with the same options, whose protected photos therefore stay

    @staticmethod
    def open(config: HardenConfig, base: Family, start: Family) -> Job:
        """Read and check all input; nothing is written."""
        photos = Photos.load(find_subjects(config.instance_data_dir), config.resolution)
        consenting = earlier = Photos({}, {})
        if config.pool.benign_size and config.pool.benign_data_dir:
            consenting = Photos.load(find_subjects(config.pool.benign_data_dir), config.resolution)
        if config.rehearsal_data_dir:
            earlier = Photos.load(find_subjects(config.rehearsal_data_dir), config.resolution)
        if both := sorted(set(photos.instance) & set(earlier.instance)):
            raise UserError(f"{both[0]} is in instance_data_dir and in rehearsal_data_dir; leave it in one of them")
        for treatment in config.variety.photos:
            make_purifier(treatment)
        audit_inputs = None
        if config.audit.enabled or config.validation.probe_steps:
            audit_inputs = load_audit_inputs(config)
        if config.single_file:
            check_single_file(base)
        photo_job = PhotoJob.load(config) if config.image_layer.enabled else None
        if audit_inputs is not None and audit_inputs.photo_attacks is not None:
            audit_inputs.photo_attacks.check(base)
        output = Path(config.output_dir)
        goes_on = bool(config.resume_from_checkpoint) and same_options(output / CONFIG, config)
        return Job(config, base, start, photos, consenting, earlier, audit_inputs, photo_job, output, goes_on)

    def claim(self) -> tuple[Checkpoint | None, dict[str, Any]]:
        """Make the output folder ours, and find where to go on; with it facts of model and photos for checkpoints."""
        config, output = self.config, self.output
        facts = {
            "base": model_hash(self.base.source or Path(config.base)),
            "start": model_hash(self.start.source or Path(config.pretrained_model_name_or_path)),
            "photos": {subject: len(images) for subject, images in self.photos.instance.items()},
            "consenting": {subject: len(images) for subject, images in self.consenting.instance.items()},
            "earlier": {subject: len(images) for subject, images in self.earlier.instance.items()},
        }
        found = checkpoints.find(output, config.resume_from_checkpoint)
        if found is not None:
            checkpoints.check(found, facts, config)
        within = found is not None and found.folder.resolve().parent == output.resolve()
        # A run that was killed before its first checkpoint left no model either.
        nothing_lost = config.resume_from_checkpoint == checkpoints.LATEST and not (output / MODEL).exists()
        claim_output_dir(output, config.overwrite_output_dir or within or nothing_lost)
        if not within:
            checkpoints.discard(output)
        needed = export_size(self.base, save_variant=config.save_variant, single_file=config.single_file)
        require_disk(output, needed)
        write_text(output / CONFIG, to_yaml(config))
        return found, facts

    def encode(self) -> tuple[dict[str, list[ProtectionData]], ...]:
        """Class pictures, drawn where missing, and everybody's latents: of the protected, of the consenting, and of
        those who were protected earlier."""
        class_images = class_posterior(self.config, self.base, self.output)
        groups = self.photos, self.consenting, self.earlier
        with torch.no_grad():
            return tuple(protection_data(self.config, self.base, group, class_images) for group in groups)

    def validator(self, hardened: Family, people: People) -> Validator:
        config, probe = self.config, None
        if config.validation.probe_steps and self.audit_inputs is not None:
            probe = make_probe(config, self.audit_inputs, people)
        return Validator(
            config.validation,
            hardened,
            probe,
            self.output / SAMPLES,
            instance_prompt=config.instance_prompt,
            seed=config.seed,
            resolution=config.resolution,
            batch_size=config.sample_batch_size,
        )

    def export(self, hardened: Family, steps: int, device: torch.device) -> None:
        """The hardened model, in place of all that an earlier run has left."""
        config, base, output = self.config, self.base, self.output
        for family in (base, hardened):
            family.pipeline.to(device)
        hardened.denoiser.requires_grad_(False).eval()
        hardened.round_weights()
        export_model(
            hardened,
            output / MODEL,
            base_path=base.source or config.base,
            config_hash=config_hash(config),
            method="apdm",
            steps=steps,
            save_variant=config.save_variant,
            single_file=config.single_file,
        )
        stale = [RESULTS, REPORT, PICTURES]
        stale += [] if config.single_file else ["model.safetensors"]
        stale += [] if self.goes_on else [IMAGES, PERTURBATION]
        for name in stale:
            delete(output / name)


def same_options(note: Path, config: HardenConfig) -> bool:
    """Whether the run that left `note`, its resolved configuration, had these options, but for those of going on."""

    def decisive(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.partition(":")[0] not in GOING_ON]

    try:
        return decisive(note.read_text(encoding="utf-8")) == decisive(to_yaml(config))
    except OSError:
        return False


def protection_data(
    config: HardenConfig, base: Family, photos: Photos, class_images: Posterior
) -> dict[str, list[ProtectionData]]:
    """Everything that does not change while hardening, encoded once: subject id -> latents and prompts, the plain case
    first, then each other prompt and treatment of the photos that `config.variety` names."""
    prompts = [config.instance_prompt, *config.variety.instance_prompts, config.class_prompt]
    *named, plain = base.encode_prompts(prompts).float().split(1)
    held = config.preservation.anchor_prompts
    anchor_prompts = base.encode_prompts(["", *held]).float() if held else None
    treatments = [None, *map(make_purifier, config.variety.photos)]

    def encode(images: Tensor, treatment: Purifier | None) -> Posterior:
        if treatment is not None:
            images = treatment(images / 2 + 0.5, base, config.seed) * 2 - 1
        return encode_images(base, images, batch_size=config.sample_batch_size)

    people: dict[str, list[ProtectionData]] = {}
    for subject, images in photos.instance.items():
        people[subject] = []
        for treatment in treatments:
            instance = encode(images, treatment)
            safe = encode(photos.safe[subject], treatment) if subject in photos.safe else None
            people[subject] += [
                ProtectionData(
                    instance=instance,
                    prior=class_images,
                    instance_prompt=prompt,
                    class_prompt=plain,
                    draw_timesteps=base.draw_timesteps,
                    positive=safe,
                    anchor_prompts=anchor_prompts,
                )
                for prompt in named
            ]
    return people
