"""The input of `apdm harden`: read and checked before any long work, encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks import Purifier
from apdm.attacks.registry import make_purifier
from apdm.config import HardenConfig, to_yaml
from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir, model_hash, require_disk, write_text
from apdm.data.subjects import Subject, find_subjects, load_images
from apdm.export.layout import CONFIG, MODEL
from apdm.export.pipeline import check_single_file, export_size
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.jobs import checkpoint as checkpoints
from apdm.jobs.audit import AuditInputs
from apdm.jobs.checkpoint import Checkpoint
from apdm.jobs.final_audit import load_audit_inputs
from apdm.jobs.perturb import PhotoJob
from apdm.jobs.prepare import class_posterior
from apdm.protection.subject_data import SubjectData

# Options in which the command that continues a run may differ from the command that began it.
CONTINUATION_OPTIONS = ("resume_from_checkpoint", "overwrite_output_dir", "max_train_steps")


@dataclass(frozen=True)
class Photos:
    """Photos of a group of people.

    Attributes:
        instance: subject id -> photos, `[N, 3, R, R]` in [-1, 1].
        safe: subject id -> safe partners of these photos, `[N, 3, R, R]`, for the subjects that have some.
    """

    instance: Mapping[str, Tensor] = field(default_factory=dict)
    safe: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def load(folder: str | None, resolution: int) -> Photos:
        """The photos of all subjects in `folder`, as squares of `resolution` pixels; none without a folder."""
        subjects: Sequence[Subject] = find_subjects(folder) if folder else []
        return Photos(
            {subject.id: load_images(subject.images, resolution) for subject in subjects},
            {subject.id: load_images(subject.safe, resolution) for subject in subjects if subject.safe is not None},
        )


@dataclass(frozen=True)
class HardenInputs:
    """Photos, judges and models of a run. The main process has them all; the other processes have the models only.

    Attributes:
        base: the original model: phi, and what draws class pictures.
        start: the model whose denoiser is hardened. It is `base`, unless people are added to a hardened model.
        photos: of the protected people. consenting: of people who consent. earlier: of people whom `start` protects.
        audit_inputs: the people and the judges of audit and probe; None if neither is asked for.
        photo_job: protects the photos themselves; None if that is not asked for.
    """

    config: HardenConfig
    base: Family
    start: Family
    photos: Photos = Photos()
    consenting: Photos = Photos()
    earlier: Photos = Photos()
    audit_inputs: AuditInputs | None = None
    photo_job: PhotoJob | None = None

    @staticmethod
    def read(config: HardenConfig, base: Family, start: Family) -> HardenInputs:
        """Read and check all input. Nothing is written. Raises UserError for anything that cannot be used."""
        photos = Photos.load(config.instance_data_dir, config.resolution)
        consenting = Photos.load(config.pool.benign_data_dir if config.pool.benign_size else None, config.resolution)
        earlier = Photos.load(config.rehearsal_data_dir, config.resolution)
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
        return HardenInputs(config, base, start, photos, consenting, earlier, audit_inputs, photo_job)

    def claim_output(self) -> tuple[Checkpoint | None, dict[str, Any], bool]:
        """Make the output folder this run's.

        Returns:
            The checkpoint to go on from, if any; facts of model and photos that checkpoints keep; and whether this run
            continues one with the same options, so that photos which that run has protected stay.
        """
        config, output = self.config, Path(self.config.output_dir)
        continues = bool(config.resume_from_checkpoint) and has_same_options(output / CONFIG, config)
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
        require_disk(output, export_size(self.base, save_variant=config.save_variant, single_file=config.single_file))
        write_text(output / CONFIG, to_yaml(config))
        return found, facts, continues

    @torch.no_grad()
    def encode(self) -> tuple[dict[str, list[SubjectData]], ...]:
        """The data of the protected, of the consenting and of the people protected earlier, on the model's device.

        Class pictures are drawn first where they are missing.
        """
        class_images = class_posterior(self.config, self.base, Path(self.config.output_dir))
        groups = self.photos, self.consenting, self.earlier
        return tuple(encode_subjects(self.config, self.base, group, class_images) for group in groups)


def has_same_options(note: Path, config: HardenConfig) -> bool:
    """Whether the run whose resolved configuration is in `note` had these options, but for CONTINUATION_OPTIONS."""

    def decisive(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.partition(":")[0] not in CONTINUATION_OPTIONS]

    try:
        return decisive(note.read_text(encoding="utf-8")) == decisive(to_yaml(config))
    except OSError:
        return False


def encode_subjects(
    config: HardenConfig, base: Family, photos: Photos, class_images: Posterior
) -> dict[str, list[SubjectData]]:
    """Encode everything that does not change while hardening, once.

    Returns:
        Subject id -> variants of the subject's latents and prompts. The plain case comes first, then each other prompt
        and each change to the photos that `config.variety` names.
    """
    prompts = [config.instance_prompt, *config.variety.instance_prompts, config.class_prompt]
    *instance_prompts, class_prompt = base.encode_prompts(prompts).float().split(1)
    held = config.preservation.anchor_prompts
    anchor_prompts = base.encode_prompts(["", *held]).float() if held else None
    changes = [None, *map(make_purifier, config.variety.photos)]

    def encode(images: Tensor, change: Purifier | None) -> Posterior:
        if change is not None:
            images = change(images / 2 + 0.5, base, config.seed) * 2 - 1
        return encode_images(base, images, batch_size=config.sample_batch_size)

    subjects: dict[str, list[SubjectData]] = {}
    for subject, images in photos.instance.items():
        subjects[subject] = []
        for change in changes:
            instance = encode(images, change)
            safe = encode(photos.safe[subject], change) if subject in photos.safe else None
            subjects[subject] += [
                SubjectData(
                    instance=instance,
                    prior=class_images,
                    instance_prompt=prompt,
                    class_prompt=class_prompt,
                    draw_timesteps=base.draw_timesteps,
                    positive=safe,
                    anchor_prompts=anchor_prompts,
                )
                for prompt in instance_prompts
            ]
    return subjects
