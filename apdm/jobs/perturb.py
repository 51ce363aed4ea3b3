"""Protect photos: read a folder of subjects, and write the same photos with small protective changes.

`apdm perturb` runs this job. The work itself is done by `apdm.jobs.photos.job.PhotoJob`, which `apdm harden` runs too.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from apdm.audit.inputs.face_checks import check_faces
from apdm.config import PerturbConfig, config_hash
from apdm.core.errors import Faults
from apdm.core.files import claim_output_dir, delete, write_text
from apdm.core.stages import Stages
from apdm.data.photo_sets import Chosen
from apdm.data.separate_photos import PhotoSet, Role, check_separate
from apdm.data.subjects import find_subjects, load_images
from apdm.distributed.launch import join_processes, stop_on_signals_or_loss
from apdm.distributed.trackers import require_tracker
from apdm.export.layout import CONFIG, IMAGES, MANIFEST, PERTURBATION
from apdm.export.manifest import write_manifest
from apdm.faces import FaceNetworks
from apdm.faces.detector_score import DetectorScore
from apdm.families import Family
from apdm.families.fit import check_steps
from apdm.families.prompts import check_prompts
from apdm.image_layer.zero_shot import FaceModels
from apdm.jobs.common.base_model import load_base
from apdm.jobs.common.class_pictures import load_own_class_pictures
from apdm.jobs.common.face_networks import face_networks
from apdm.jobs.common.first_checks import check_made_by
from apdm.jobs.common.prepare import goes_on, photos_of_datasets, prepare_process, resolved, warn_about_prompts
from apdm.jobs.common.results import PerturbResult
from apdm.jobs.common.stages import PHOTOS, PREPARING
from apdm.jobs.common.tracked import start_tracker
from apdm.jobs.photos.job import PhotoJob, Watch, unwatched
from apdm.jobs.planning.plan import perturb_plan, show_plan

KEPT = "photos that are finished are kept"


@dataclass(frozen=True, kw_only=True)
class PhotoModels:
    """What a run that protects photos loads. It is only read, so several runs, one after the other, may share it.

    Attributes:
        networks: the networks that look at faces.
        family: the model that photos are protected against.
    """

    networks: FaceNetworks
    family: Family

    @staticmethod
    def load(config: PerturbConfig) -> PhotoModels:
        """Load and check the networks and the model, before there are photos.

        Raises:
            UserError: one of them cannot be used. All such mistakes are told.
        """
        prepare_process(config.num_threads)
        networks = face_networks(config)
        with Faults() as faults:
            if config.image_layer.zero_shot.enabled:
                faults.of(lambda: FaceModels(networks.detector, networks.targets))
            family = faults.of(lambda: _load_family(config))
        return PhotoModels(networks=networks, family=family)


def perturb(
    config: PerturbConfig,
    *,
    command: str | None = None,
    models: PhotoModels | None = None,
    watch: Watch = unwatched,
) -> PerturbResult:
    """Protect the photos of all subjects, in one process or under `accelerate launch`.

    `apdm perturb`, `apdm app` and `apdm.perturb` all run this function.

    Args:
        models: what an earlier run with the same options has loaded; None loads it.
        watch: called before the first step and after every step. What it raises ends the run.

    Returns:
        Where the protected photos are, and how visible the changes are.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. Finished photos are kept.
    """
    processes, device = join_processes()
    with stop_on_signals_or_loss(processes, KEPT, kept=(Path(config.output_dir) / IMAGES).exists), ExitStack() as held:
        prepare_process(config.num_threads)
        require_tracker(config.report_to)
        warn_about_prompts(config.instance_prompt, config.class_prompt)
        stages = held.enter_context(Stages([PREPARING, PHOTOS]))
        stages.begin(PREPARING)
        processes.on_main(lambda: held.enter_context(photos_of_datasets(config)))
        job, family = processes.main_first(lambda: load_perturb(config, quiet=not processes.is_main, models=models))
        output = processes.broadcast(lambda: claim_photo_dir(config, held))
        tracker = processes.on_main(lambda: start_tracker(config, held))
        # The other processes have not looked for faces yet, and would do so for the plan.
        processes.on_main(lambda: show_plan(perturb_plan(config, job, family, processes=processes, device=device)))
        family.pipeline.to(device)
        stages.begin(PHOTOS)
        figures = job.run(family, output, processes, tracker=tracker, command=command, watch=watch)
        processes.on_main(lambda: write_manifest(output, config_hash=config_hash(config)))
        return PerturbResult(output_dir=output, image_dir=output / IMAGES, figures=figures)


def load_perturb(config: PerturbConfig, *, quiet: bool, models: PhotoModels | None = None) -> tuple[PhotoJob, Family]:
    """Read and check all input, before anything is written. `models` are those that are loaded already."""
    networks = face_networks(config) if models is None else models.networks
    with Faults() as faults:
        job = faults.of(lambda: PhotoJob.load(config, networks, quiet=quiet))
        family = faults.of(lambda: _load_family(config) if models is None else models.family)
    job.check_fits(family)
    if job.protection.needs_class_pictures:
        subjects = find_subjects(config.instance_data_dir, chosen=Chosen(config.protected_set))
        photos = {subject.id: load_images(subject.images, config.resolution) for subject in subjects}
        protected = PhotoSet.of_people(Role.PROTECTED, config.instance_data_dir, subjects, photos)
        sets = [protected, *load_own_class_pictures(config, family)]
        check_separate(sets)
        if job.faces is not None and not quiet:
            check_faces(sets, job.faces.encoders, DetectorScore(job.faces.detector), judged=False)
    return job, family


def _load_family(config: PerturbConfig) -> Family:
    """Load the model, and check that it can be taught the prompts."""
    family = load_base(config)
    learned = {"instance_prompt": [config.instance_prompt]}
    check_prompts(family, learned=learned, class_prompt=config.class_prompt, drawn={})
    check_steps(family, {"num_inference_steps": config.num_inference_steps})
    return family


def claim_photo_dir(config: PerturbConfig, held: ExitStack) -> Path:
    """Claim the output folder. Photos that an interrupted run with the same options has finished are kept.

    Args:
        held: keeps other runs out of the folder until it is closed.

    Raises:
        UserError: the folder is not from this program, or holds photos that were protected with other options; or
            another run is at work in it.
    """
    output, same = Path(config.output_dir), goes_on(config)
    check_made_by(config)
    claim_output_dir(output, overwrite=same or config.overwrite_output_dir, until=held)
    for stale in (PERTURBATION, MANIFEST) if same else (PERTURBATION, MANIFEST, IMAGES):
        delete(output / stale)  # the first two speak of all photos, and are written again at the end
    write_text(output / CONFIG, resolved(config))
    return output
