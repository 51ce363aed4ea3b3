"""The image layer as a job: a folder of subjects in, the same photos protected out, each checked as it was saved.

`apdm perturb` and the main job both end in `PhotoJob.run`.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apdm.config import JobConfig, PerturbConfig, config_hash, to_yaml
from apdm.config.image_layer import ImageLayerConfig
from apdm.core.errors import UserError
from apdm.core.files import MARKER, claim_output_dir, delete, list_files, write_text
from apdm.core.logging import get_logger
from apdm.core.signals import stop_on_signals
from apdm.core.terminal import progress_bar
from apdm.core.versions import package_versions
from apdm.data.subjects import find_subjects
from apdm.distributed.launch import join_processes
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.export.layout import CONFIG, IMAGES, PERTURBATION
from apdm.export.manifest import write_manifest
from apdm.faces import Face, load_detector, load_encoders
from apdm.families import Family, Posterior
from apdm.image_layer.photos import Photo, deviation, read_photo, read_subject, save_photo
from apdm.image_layer.protect import FaceTools, make_transform, protect_subject
from apdm.image_layer.scene import Scene
from apdm.image_layer.zero_shot import embed_face
from apdm.jobs.prepare import class_posterior, load_base, prepare_process
from apdm.jobs.results import PerturbResult
from apdm.metrics.perception import visibility

logger = get_logger(__name__)


@stop_on_signals("photos that are finished are kept; the same command goes on")
def perturb(config: PerturbConfig, *, command: str | None = None) -> PerturbResult:
    """Protect the photos of all subjects; the code of `apdm perturb` and of `apdm.perturb`.

    Args:
        config: the options.
        command: the command line that was given, as perturbation.json tells it.

    Raises:
        UserError: bad input, found before any long work starts.
        Interrupted: the process was asked to stop; finished photos are kept.
    """
    processes, device = join_processes()
    prepare_process(config.num_threads)
    job, family = processes.main_first(lambda: (PhotoJob.load(config, quiet=not processes.is_main), load_base(config)))
    output = processes.broadcast(lambda: claim_photo_dir(config))
    family.pipeline.to(device)
    figures = job.run(family, output, processes, command=command)
    processes.on_main(lambda: write_manifest(output, config_hash=config_hash(config)))
    return PerturbResult(output_dir=output, image_dir=output / IMAGES, figures=figures)


def claim_photo_dir(config: PerturbConfig) -> Path:
    """The output folder, claimed; what an interrupted run with the same options has finished stays.

    Raises UserError for a folder that is not ours, or that holds photos protected with other options.
    """
    output = Path(config.output_dir)
    resolved = to_yaml(replace(config, overwrite_output_dir=False))
    note = output / CONFIG
    same = (output / MARKER).exists() and note.exists() and note.read_text() == resolved
    claim_output_dir(output, overwrite=same or config.overwrite_output_dir)
    if not same:
        delete(output / IMAGES)
        delete(output / PERTURBATION)
        write_text(note, resolved)
    return output


def refuse_source(source: str | Path, output: str | Path) -> None:
    """Raise UserError where protected photos would land among their originals, or originals lie in the output."""
    inside, outside = (Path(os.path.realpath(path)) for path in (source, output))
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise UserError(
            f"output_dir {output} and instance_data_dir {source} lie in one another: originals are never "
            "overwritten; choose an output_dir elsewhere"
        )


class PhotoJob:
    """All photos of a run, read and checked before any long work, and how to protect them."""

    def __init__(self, config: JobConfig, photos: Mapping[str, list[Photo]], faces: FaceTools | None) -> None:
        self.config, self.photos, self.faces = config, photos, faces

    @staticmethod
    def load(config: JobConfig, *, quiet: bool = False) -> PhotoJob:
        """Read and check photos and face encoders. quiet: do not say which photos show no face. Raises UserError for
        anything that cannot be used."""
        layer = config.image_layer
        refuse_source(config.instance_data_dir, config.output_dir)
        subjects = find_subjects(config.instance_data_dir)
        photos = {subject.id: read_subject(subject, layer.format) for subject in subjects}
        faces = None
        if layer.zero_shot.enabled:
            detector = load_detector(layer.zero_shot.detector)
            encoders = load_encoders(layer.zero_shot.encoders, detector=detector, allow_pickle=config.allow_pickle)
            faces = FaceTools(detector, encoders)
            if not quiet:
                _report_faces(photos, faces, refuse=layer.zero_shot.no_face == "refuse")
        return PhotoJob(config, photos, faces)

    def run(
        self, family: Family, output: Path, processes: ProcessGroup = SINGLE_PROCESS, *, command: str | None = None
    ) -> dict[str, Any] | None:
        """Protect what is missing in `output`/images, each of the processes some of the people.

        The main process writes `output`/perturbation.json and returns its content, the others None.
        """
        config, layer, started = self.config, self.config.image_layer, time.perf_counter()
        missing = processes.broadcast(lambda: self._missing(output / IMAGES))
        mine = missing[processes.index :: processes.size]
        with torch.no_grad():
            prior = None
            if missing and needs_prior(layer):
                prior = processes.main_first(
                    lambda: class_posterior(config, family, output, show_progress=processes.is_main)
                )
        self._protect(mine, family, prior, output / IMAGES, show_progress=processes.is_main)
        done, seconds = sum(len(self.photos[subject]) for subject in mine), time.perf_counter() - started
        processes.wait()
        if not processes.is_main:
            return None
        self._withdraw(output / IMAGES)
        if missing and layer.format == "jpeg":
            logger.warning("photos are saved as JPEG: compression takes part of the protection away; PNG keeps it")
        results = self.figures(output / IMAGES)
        results |= {"command": command, "seconds_per_photo": seconds / done if done else None}
        results["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        write_text(output / PERTURBATION, json.dumps(results, indent=1, allow_nan=False) + "\n")
        return results

    def _protect(
        self, subjects: Sequence[str], family: Family, prior: Posterior | None, images: Path, *, show_progress: bool
    ) -> None:
        """Write the protected photos of some people."""
        config, layer = self.config, self.config.image_layer
        with torch.no_grad():
            prompts = family.encode_prompts([config.instance_prompt, config.class_prompt]).float()
        if self.faces is not None:
            self.faces.to(prompts.device)
        total, shown = layer.total_steps * len(subjects), show_progress and bool(subjects)
        with progress_bar(total=total, desc="protect", unit="step", shown=shown) as bar:

            def progress(values: Mapping[str, Tensor]) -> None:
                bar.update()

            for count, subject in enumerate(subjects, 1):
                bar.set_description(f"protect {subject}")
                photos = self.photos[subject]
                scene = Scene(
                    family=family,
                    originals=[photo.unit.to(prompts.device) for photo in photos],
                    prompt_embeds=prompts[:1],
                    class_prompt_embeds=prompts[1:],
                    prior=prior,
                    resolution=config.resolution,
                    generator=_generator(config.seed, subject),
                    transform=make_transform(layer),
                    callback=progress,
                )
                for photo, pixels in zip(photos, protect_subject(photos, scene, layer, self.faces), strict=True):
                    save_photo(pixels, self._path(images, subject, photo), layer.format, layer.jpeg_quality)
                bar.update(layer.total_steps * count - bar.n)  # a layer that reached its aim early
        if self.faces is not None:
            self.faces.to("cpu")  # where saved photos are looked at

    def figures(self, images: Path) -> dict[str, Any]:
        """How visible the saved photos' changes are, and what encoders make of them.

        Raises UserError where a saved photo is not within the budget of its original.
        """
        layer = self.config.image_layer
        rows = []
        for subject, photos in self.photos.items():
            for number, photo in enumerate(photos):
                path = self._path(images, subject, photo)
                changed = deviation(path, photo.pixels, layer.format)
                if changed is None or changed > layer.ball + 1e-6:
                    raise UserError(f"{path} is not within the budget of its original: remove it and run again")
                rows.append({"subject": subject, "photo": number} | self._look(photo, read_photo(path)))
        return {
            "schema": 1,
            "package": package_versions(),
            "method": layer.method,
            "zero_shot": layer.zero_shot.enabled,
            "format": layer.format,
            "epsilon": {"fine_tuning": layer.fine_tuning_epsilon, "zero_shot": layer.zero_shot_epsilon},
            "photos": rows,
        }

    def _look(self, original: Photo, saved: Photo) -> dict[str, Any]:
        """Figures of one saved photo: the whole, each face, and each encoder's cosine to the original."""
        before, after = _rgb(original.pixels), _rgb(saved.pixels)
        found = self.faces.detector.detect(original.unit) if self.faces else []
        return {"visible": asdict(visibility(before, after)), "faces": [self._face(original, saved, f) for f in found]}

    @torch.no_grad()
    def _face(self, original: Photo, saved: Photo, face: Face) -> dict[str, Any]:
        """Figures of one face's crop, and each encoder's cosine between what it sees before and after."""
        left, top = (max(0, int(edge)) for edge in face.box[:2])
        right, bottom = (int(edge) + 1 for edge in face.box[2:])
        before, after = (_rgb(p.pixels[:, top:bottom, left:right]) for p in (original, saved))
        entry: dict[str, Any] = {"visible": asdict(visibility(before, after)), "cosine": {}}
        for encoder in self.faces.encoders if self.faces else ():
            clean, now = (embed_face(encoder, p.unit, face) for p in (original, saved))
            entry["cosine"][encoder.name] = {"to_original": float(clean @ now), "threshold": encoder.threshold}
        return entry

    def _withdraw(self, images: Path) -> None:
        """Remove what an earlier run protected whose original is no longer there."""
        ours = {self._path(images, subject, photo) for subject, photos in self.photos.items() for photo in photos}
        for stale in list_files(images):
            if stale not in ours:
                delete(stale)
                if not list_files(stale.parent):
                    delete(stale.parent)

    def _missing(self, images: Path) -> list[str]:
        """Subjects of which a protected photo is missing or is not of this original."""
        layer = self.config.image_layer
        return [
            subject
            for subject, photos in self.photos.items()
            if not all(_is_of(self._path(images, subject, photo), photo.pixels, layer) for photo in photos)
        ]

    def _path(self, images: Path, subject: str, photo: Photo) -> Path:
        return images / subject / photo.name(self.config.image_layer.format)


def needs_prior(layer: ImageLayerConfig) -> bool:
    """Whether the method's surrogate is trained with class pictures."""
    return bool(getattr(getattr(layer, layer.method, None), "prior_loss_weight", 0.0))


def _rgb(pixels: Tensor) -> np.ndarray:
    """[3, H, W] -> [H, W, 3]."""
    return np.asarray(pixels.permute(1, 2, 0))


def _is_of(path: Path, original: Tensor, layer: ImageLayerConfig) -> bool:
    """Whether a protected photo is there and lies within the ball around its original."""
    if not path.exists():
        return False
    changed = deviation(path, original, layer.format)
    return changed is not None and changed <= layer.ball + 1e-6


def _generator(seed: int, subject: str) -> torch.Generator:
    """A subject's own stream, whoever else is protected beside it."""
    words = np.random.SeedSequence([seed, *subject.encode()]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def _report_faces(photos: Mapping[str, list[Photo]], faces: FaceTools, *, refuse: bool) -> None:
    """Say which photos show no face, to which the zero-shot layer can do nothing; refuse them if so asked."""
    without = [
        f"{subject}/{photo.path.name}"
        for subject, own in photos.items()
        for photo in own
        if not faces.detector.detect(photo.unit)
    ]
    if without and refuse:
        raise UserError(
            f"no face was found in {', '.join(without)}; remove the photo, or go on without the zero-shot layer there "
            "with --image_layer.zero_shot.no_face skip"
        )
    if without:
        logger.warning("no face found in %s: the zero-shot layer leaves them as they are", ", ".join(without))
