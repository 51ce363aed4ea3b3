"""The photos of a run and their protection, without the model: read, protect, save, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from apdm.audit.results.store import key_of
from apdm.config import JobConfig
from apdm.config.groups.image_layer import NO_METHOD
from apdm.config.plugins import code_hash
from apdm.core.disk import require_disk
from apdm.core.errors import Faults, UserError, each
from apdm.core.files import model_hash, write_json
from apdm.core.logging import get_logger
from apdm.core.memory import peak_memory
from apdm.core.signals import check_for_stop
from apdm.core.terminal import progress_bar
from apdm.core.versions import package_versions
from apdm.data.photo_sets import Chosen
from apdm.data.subjects import find_subjects
from apdm.data.transforms import RandomTransform
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.distributed.trackers import Tracker
from apdm.export.layout import IMAGES, PERTURBATION
from apdm.faces import FaceNetworks
from apdm.faces.described import describe
from apdm.faces.person import PersonsFace
from apdm.faces.photo_faces import PhotoFaces
from apdm.families import Family, Posterior
from apdm.families.configuration import configuration_hash
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.measure import measure_photo
from apdm.image_layer.memory import PhotoMemory
from apdm.image_layer.pgd import Progress
from apdm.image_layer.photos import Photo, PhotoFile
from apdm.image_layer.results import Perturbation, ProtectedPhoto
from apdm.image_layer.task import ProtectionTask, generator_of
from apdm.image_layer.views import working_copy
from apdm.image_layer.zero_shot import FaceModels
from apdm.jobs.common.class_pictures import class_posterior
from apdm.jobs.common.prepare import keep_apart
from apdm.jobs.common.tracked import track_photos
from apdm.jobs.photos.input import checked_photos, clean_photos, refuse_without_face, warn_of_unprotected
from apdm.jobs.photos.saved import SavedPhotos
from apdm.jobs.photos.sources import delete_of_other_sources

Watch = Callable[[int, int], None]  # (steps that are done, all steps)

logger = get_logger(__name__)


def unwatched(done: int, steps: int) -> None:
    """The `Watch` of a run whose steps nobody but its progress bar counts."""


@dataclass(frozen=True, kw_only=True)
class PhotoJob:
    """All photos of a run, and everything that is needed to protect them except the model.

    Attributes:
        photos: {subject id: the subject's photos}. They are read when the subject's turn comes.
        known: {subject id: the faces in each photo, and which is the subject's}, of subjects whose photos were looked
            at already.
        memory: what the photos of one subject need at most while they are protected.
        clean: {subject id: other photos of the subject, which surrogates learn}; empty if they learn `photos`.
        faces: the models of the zero-shot layer; None if it is not used.
        protection: the layers of the photo protection.
        transform: random changes, such as JPEG compression, that the protection must survive; None for no changes.
        class_pictures: draws the class pictures with the model, if they are missing, and returns their latents.
        instance_prompt: the prompt that an attacker trains the photos with.
        class_prompt: the prompt of the class pictures.
        resolution: side of the square that a trainer makes of a photo, in pixels.
        working_side: the longest shorter side of the copies that the fine-tuning layer works on, in pixels.
        seed: seed of all random numbers.
        code: hash of a photo protection of the user's own; None for one of this package.
        saved: how the protected photos are saved.
        epsilon: {layer: budget in [0, 1] pixel units} of both layers, for perturbation.json.
    """

    photos: Mapping[str, list[PhotoFile]]
    known: dict[str, list[PersonsFace]]
    memory: PhotoMemory
    clean: Mapping[str, list[PhotoFile]]
    faces: FaceModels | None
    protection: LayeredProtection
    transform: RandomTransform | None
    class_pictures: Callable[[Family], Posterior]
    instance_prompt: str
    class_prompt: str
    resolution: int
    working_side: int
    seed: int
    code: str | None
    saved: SavedPhotos
    epsilon: dict[str, float]

    @staticmethod
    def load(config: JobConfig, networks: FaceNetworks, *, quiet: bool = False) -> PhotoJob:
        """Read and check the photos, the face models and the options, before any long work starts.

        Args:
            networks: the networks for faces, of which the zero-shot layer takes the detector and its targets.
            quiet: do not look for faces yet.

        Raises:
            UserError: a photo, a face model or an option cannot be used.
        """
        layer = config.image_layer
        apart = partial(keep_apart, output_dir=config.output_dir, class_data_dir=config.class_data_dir)
        faces: FaceModels | None = None
        chosen = Chosen(config.protected_set)
        with Faults() as faults:
            faults.of(lambda: apart({"instance_data_dir": config.instance_data_dir}))
            if layer.zero_shot.enabled:
                faces = faults.of(lambda: FaceModels(networks.detector, networks.targets))
            subjects = faults.of(lambda: find_subjects(config.instance_data_dir, chosen=chosen)) or []
            looking = None if quiet else faces
            checked = faults.of(lambda: each(subjects, partial(checked_photos, kind=layer.format, faces=looking)))
        photos = {subject.id: found for subject, (found, _) in zip(subjects, checked, strict=True)}
        protection = LayeredProtection.from_config(layer, faces)
        clean = {} if protection.clean_photos is None else clean_photos(protection.clean_photos, photos, apart)
        known = {}
        if looking is not None:
            known = {subject.id: looking.choose(seen) for subject, (_, seen) in zip(subjects, checked, strict=True)}
        if layer.zero_shot.no_face == "refuse":
            refuse_without_face(photos, known)
        elif layer.method == NO_METHOD:
            warn_of_unprotected(photos, known)
        side = layer.working_side or 2 * config.resolution
        memory = PhotoMemory.largest(
            PhotoMemory.of(
                own, side, known.get(subject, ()), momentum=bool(layer.zero_shot.momentum), batch_size=layer.batch_size
            )
            for subject, own in photos.items()
        )
        memory.require(side)
        return PhotoJob(
            photos=photos,
            known=known,
            memory=memory,
            clean=clean,
            faces=faces,
            protection=protection,
            transform=RandomTransform.from_config(layer.transform),
            class_pictures=partial(class_posterior, config),
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            resolution=config.resolution,
            working_side=side,
            seed=config.seed,
            code=code_hash(layer.method),
            saved=SavedPhotos(photos, protection.epsilon, layer.format, layer.jpeg_quality),
            epsilon={"fine_tuning": layer.fine_tuning_epsilon, "zero_shot": layer.zero_shot_epsilon},
        )

    @property
    def memory_text(self) -> str:
        """How much memory the photos need, and which are worked on as copies, in words."""
        return self.memory.text(None if self.protection.method == NO_METHOD else self.working_side)

    def check_fits(self, family: Family) -> None:
        """Raise UserError, before any long work, if the photo protection cannot work on a model."""
        self.protection.check_fits(family, self.instance_prompt, self.class_prompt, resolution=self.resolution)

    def run(
        self,
        family: Family,
        output: Path,
        processes: ProcessGroup = SINGLE_PROCESS,
        *,
        tracker: Tracker | None = None,
        command: str | None = None,
        watch: Watch = unwatched,
    ) -> Perturbation | None:
        """Protect the photos that are missing in the output folder, measure all of them, and write perturbation.json.

        Args:
            family: the model that the photos are protected against.
            processes: the processes that share the work. All of them must call this method.
            watch: called in this process before the first step and after every step. What it raises ends the run.

        Returns:
            The content of perturbation.json; None in all processes but the main one.

        Raises:
            UserError: a saved photo is not within the budget of its original.
        """
        seconds_per_photo = self.protect(family, output, processes, watch=watch)

        def measure_and_write() -> Perturbation:
            peak = peak_memory(next(family.denoiser.parameters()).device)
            figures = self.measure(output, seconds_per_photo=seconds_per_photo, peak_memory_bytes=peak, command=command)
            write_json(output / PERTURBATION, asdict(figures))
            for name, count in figures.still_recognised.items():
                logger.warning(
                    "%s still recognises the person in %d of %d photos, although it was to be misled: raise "
                    "image_layer.zero_shot.max_steps or image_layer.zero_shot.epsilon",
                    *(name, count, len(figures.photos)),
                )
            if tracker is not None:
                track_photos(tracker, figures, output, self.resolution)
            return figures

        return processes.on_main(measure_and_write)

    def protect(
        self, family: Family, output: Path, processes: ProcessGroup, *, watch: Watch = unwatched
    ) -> float | None:
        """Protect the photos that are missing in the output folder. Each process protects some of the subjects.

        Args:
            family: the model that the photos are protected against.
            processes: the processes that share the work. All of them must call this method.
            watch: as for `run`.

        Returns:
            The seconds that this process took per photo; None if it had no photo to protect.
        """
        started, images = time.perf_counter(), output / IMAGES
        processes.on_main(lambda: delete_of_other_sources(output, self.sources(family)))
        missing = processes.broadcast(lambda: self.saved.missing(images))
        processes.on_main(lambda: require_disk(images, self.saved.size(missing), "the protected photos"))
        mine = missing[processes.index :: processes.size]
        prior = None
        if missing and self.protection.needs_class_pictures:
            with torch.no_grad():
                prior = processes.main_first(lambda: self.class_pictures(family))
        try:
            self._protect_subjects(mine, family, prior, images, watch)
        finally:
            if self.faces is not None:
                self.faces.to("cpu")  # because the saved photos are measured on the CPU
        done, seconds = sum(len(self.photos[subject]) for subject in mine), time.perf_counter() - started
        processes.wait()
        if missing and self.saved.format == "jpeg":
            logger.warning("photos are saved as JPEG: compression takes part of the protection away; PNG keeps it")
        return seconds / done if done else None

    def measure(
        self,
        output: Path,
        *,
        seconds_per_photo: float | None = None,
        peak_memory_bytes: int | None = None,
        command: str | None = None,
    ) -> Perturbation:
        """Measure all protected photos, and delete those whose originals are gone.

        Args:
            seconds_per_photo: seconds that protecting one photo took; None if none was protected.
            peak_memory_bytes: see `peak_memory`.

        Returns:
            The content of perturbation.json.

        Raises:
            UserError: a saved photo is not within the budget of its original.
        """
        self.saved.remove_stale(output / IMAGES)
        return Perturbation(
            schema=1,
            package=package_versions(),
            method=self.protection.method,
            zero_shot=self.faces is not None,
            misled=[] if self.faces is None else [describe(encoder) for encoder in self.faces.encoders],
            detector=None if self.faces is None else describe(self.faces.detector),
            format=self.saved.format,
            epsilon=self.epsilon,
            photos=self._measure_photos(output / IMAGES),
            people=self.describe_faces(),
            command=command,
            seconds_per_photo=seconds_per_photo,
            peak_memory_bytes=peak_memory_bytes,
        )

    def sources(self, family: Family) -> dict[str, dict[str, str]]:
        """Return hashes of what each photo's protected version is made from: itself, the model and the networks.

        Returns:
            {subject id: {name of the photo: hash in hex}}.
        """
        model: list[str] | None = None
        if family.origin is not None and self.protection.method != NO_METHOD:
            model = [model_hash(family.origin), configuration_hash(family)]
        faces = self.faces
        seen = [] if faces is None else [*map(describe, faces.encoders), describe(faces.detector)]
        common = {"model": model, "code": self.code, "networks": [network.sha256 for network in seen]}

        def of_subject(subject: str) -> dict[str, str]:
            clean = [photo.file_hash() for photo in self.clean.get(subject, ())]
            return {
                photo.path.name: key_of({**common, "clean": clean, "photo": photo.file_hash()})
                for photo in self.photos[subject]
            }

        return {subject: of_subject(subject) for subject in self.photos}

    def look_for_faces(self, subject: str) -> list[PersonsFace]:
        """Return the faces in each photo of a subject; nothing without a zero-shot layer."""
        if self.faces is None:
            return []
        if subject not in self.known:
            self.known[subject] = self.faces.choose(
                [self.faces.look(photo.read().unit) for photo in self.photos[subject]]
            )
        return self.known[subject]

    def describe_faces(self) -> list[PhotoFaces]:
        """Return what is to be said about the faces in each subject's photos; nothing without a zero-shot layer."""
        if self.faces is None:
            return []
        return [
            PhotoFaces.of(subject, self.look_for_faces(subject), [(photo.height, photo.width) for photo in photos])
            for subject, photos in self.photos.items()
        ]

    def _protect_subjects(
        self, subjects: Sequence[str], family: Family, prior: Posterior | None, images: Path, watch: Watch
    ) -> None:
        """Write the protected photos of some subjects."""
        for subject in subjects:  # before the encoders, which look too, leave the CPU
            self.look_for_faces(subject)
        with torch.no_grad():
            prompts = family.encode_prompts([self.instance_prompt, self.class_prompt]).float()
        if self.faces is not None:
            self.faces.to(prompts.device)
        steps, done = self.protection.total_steps, 0
        with progress_bar(total=steps * len(subjects), desc="protect", unit="step") as bar:

            def progress(values: Mapping[str, Tensor]) -> None:
                nonlocal done
                done += 1
                bar.update()
                check_for_stop()
                watch(done, steps * len(subjects))

            for count, subject in enumerate(subjects, 1):
                watch(done, steps * len(subjects))
                bar.set_description(f"protect {subject}")
                photos = [photo.read() for photo in self.photos[subject]]
                task = self._task(subject, photos, family, prompts, prior, progress)
                try:
                    protected = self.protection.protect(photos, task)
                except FloatingPointError as error:
                    raise UserError(f"the photos of {subject} cannot be protected: {error}") from None
                for photo, pixels in zip(self.photos[subject], protected, strict=True):
                    self.saved.save(pixels, images, subject, photo)
                bar.update(steps * count - bar.n)  # because the zero-shot layer may stop before its last step
                done = steps * count

    def _task(
        self,
        subject: str,
        photos: Sequence[Photo],
        family: Family,
        prompts: Tensor,
        prior: Posterior | None,
        progress: Progress,
    ) -> ProtectionTask:
        """Return what the layers get of a subject. `prompts` are the encoded instance and class prompt, `[2, L, D]`."""

        def copies(of: Iterable[Photo]) -> list[Tensor]:
            return [working_copy(photo, self.working_side).to(prompts.device) for photo in of]

        return ProtectionTask(
            family=family,
            originals=copies(photos),
            prompt_embeds=prompts[:1],
            class_prompt_embeds=prompts[1:],
            prior=prior,
            resolution=self.resolution,
            generator=generator_of(self.seed, subject),
            transform=self.transform,
            faces=None if self.faces is None else [each.chosen for each in self.look_for_faces(subject)],
            callback=progress,
            prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            clean=copies(photo.read() for photo in self.clean.get(subject, ())),
        )

    def _measure_photos(self, images: Path) -> list[ProtectedPhoto]:
        found = []
        for subject, photos in self.photos.items():
            faces = [each.chosen for each in self.look_for_faces(subject)] or [[] for _ in photos]
            for number, photo in enumerate(photos):
                original = photo.read()
                saved = self.saved.read(images, subject, photo, original)
                found.append(measure_photo(original, saved, self.faces, faces[number], subject=subject, number=number))
        return found
