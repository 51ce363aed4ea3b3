"""The input of `apdm harden`. It is read and checked before any long work, and photos are encoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from apdm.attacks.purify import check_purifier
from apdm.attacks.registry import make_purifier
from apdm.audit.cells.class_pictures import require_face, warn_of_few_faces
from apdm.config import HardenConfig, PerturbConfig, to_yaml
from apdm.config.continuation import CONTINUATION_OPTIONS, has_same_options
from apdm.config.options import options_by_path
from apdm.config.plugins import code_hash
from apdm.core.disk import picture_size, require_parts
from apdm.core.errors import Faults, each
from apdm.core.files import check_output_dir, claim_output_dir, delete, model_hash, sha256_file, write_text
from apdm.core.logging import get_logger
from apdm.data.photo_sets import LAST_THIRD
from apdm.data.separate_photos import PhotoSet, Role
from apdm.export.layout import CONFIG, IMAGES, MODEL, PERTURBATION, SAMPLES
from apdm.export.pipeline import check_single_file, export_size
from apdm.families import Family
from apdm.families.configuration import configuration_hash
from apdm.families.encoding import encode_images
from apdm.families.fit import check_steps
from apdm.families.prompts import check_prompts
from apdm.jobs.auditing.inputs import AuditInputs
from apdm.jobs.common.class_pictures import (
    class_pictures,
    class_pictures_to_draw,
    load_own_class_pictures,
    own_class_files,
)
from apdm.jobs.common.first_checks import has_only_begun
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.encoding import encode_subjects
from apdm.jobs.hardening.files import HardenFiles, read_files
from apdm.jobs.hardening.final_audit import final_plan
from apdm.jobs.hardening.partners import draw_partners
from apdm.jobs.hardening.validation import pictures_of_validation
from apdm.jobs.photos.job import PhotoJob
from apdm.jobs.planning.audit_work import AuditWork
from apdm.jobs.planning.memory import pool_size
from apdm.protection.subject_data import SubjectData

logger = get_logger(__name__)

# Options that decide nothing about the protected photos: these depend on the original model and on no hardening.
NOT_OF_PHOTOS = (
    *CONTINUATION_OPTIONS,
    *({*options_by_path(HardenConfig)} - {*options_by_path(PerturbConfig), "reference_model_name_or_path"}),
)


class AboutPhotos(TypedDict):
    """How protected photos were paired with safe pictures, and which were held out; None for none."""

    pairs: str
    held_out: str | None


@dataclass(frozen=True, kw_only=True)
class HardenInputs(HardenFiles):
    """Photos, judges and models of a run. The main process has all of them; the other processes have only the models.

    Attributes:
        config: the options.
        base: the original model. Its denoiser is the reference phi, and it draws the class pictures.
        start: the model whose denoiser is hardened. It is `base`, unless people are added to a hardened model.
        own_class_pictures: how many class pictures of the user's own there are; 0 if the base draws them.
    """

    config: HardenConfig
    base: Family
    start: Family
    own_class_pictures: int = 0

    @staticmethod
    def read(config: HardenConfig, base: Family, start: Family) -> HardenInputs:
        """Read and check all input. Nothing is written. Raises UserError if some input cannot be used."""
        with Faults() as faults:
            files = faults.of(lambda: read_files(config))
            own = faults.of(lambda: check_base(config, base))
        return HardenInputs.of(config, files, own, base, start)

    @staticmethod
    def of(
        config: HardenConfig, files: HardenFiles, own: Sequence[PhotoSet], base: Family, start: Family
    ) -> HardenInputs:
        """Put the parts together. Raises UserError if they do not fit each other.

        Args:
            files: what was read without the models.
            own: the user's own class pictures, from `check_base`.
            start: the model to harden.
        """
        audit, photo_job = files.audit_inputs, files.photo_job
        attacks = None if audit is None else audit.photo_attacks

        def check_variety(spec: str) -> None:
            check_purifier(make_purifier(spec), base, "variety.photos: ")

        with Faults() as faults:
            faults.of(lambda: files.check_people(own))
            faults.of(lambda: each(config.variety.photos, check_variety))
            if attacks is not None:
                attacks.check(base, config.audit.num_inference_steps)
            if photo_job is not None:
                faults.of(lambda: photo_job.check_fits(base))
            if audit is not None and attacks is not None and photo_job is not None:
                faults.of(lambda: attacks.check_photos(attacked_photos(audit, photo_job)))
        number = sum(len(pictures.files) for pictures in own)
        return HardenInputs(**vars(files), config=config, base=base, start=start, own_class_pictures=number)

    def claim_output(self, held: ExitStack) -> tuple[Checkpoint | None, dict[str, Any]]:
        """Claim the output folder, delete in it what this run does not continue, and save the options in it.

        Old checkpoints are deleted, and so are photos that were protected with other options. Photos go before the
        options are saved: otherwise a run that is stopped in between would take them for its own when it goes on.

        Args:
            held: keeps other runs out of the folder until it is closed.

        Returns:
            The checkpoint to resume from, or None; and the facts about models and photos that checkpoints store.

        Raises:
            UserError: the folder cannot be used, another run is at work in it, the checkpoint does not fit this run, or
                the disk is too full.
        """
        config, output, facts = self.config, Path(self.config.output_dir), self._facts()
        found = self._checkpoint(facts)
        claim_output_dir(output, self._may_replace(found), until=held)
        if not _lies_in(found, output):
            checkpoints.discard(output)
            delete(output / SAMPLES)  # of the run whose checkpoints these were
        require_parts(output, self.sizes())
        if self._tell_photos_to_delete():
            delete(output / IMAGES)
            delete(output / PERTURBATION)
        write_text(output / CONFIG, to_yaml(config))
        return found, facts

    def check_output(self) -> Checkpoint | None:
        """Check the output folder as `claim_output` does, and write nothing.

        Returns:
            The checkpoint to resume from, or None.
        """
        found = self._checkpoint(self._facts() if self.config.resume_from_checkpoint else {})
        check_output_dir(self.config.output_dir, overwrite=self._may_replace(found))
        self._tell_photos_to_delete()
        return found

    def _tell_photos_to_delete(self) -> bool:
        """Whether the output folder holds protected photos that are not this run's. A warning tells of them."""
        config, output = self.config, Path(self.config.output_dir)
        resumes = config.resume_from_checkpoint is not None
        if not (output / IMAGES).exists() or (
            resumes and has_same_options(output / CONFIG, to_yaml(config), NOT_OF_PHOTOS)
        ):
            return False
        why = "with other options" if resumes else "before"
        logger.warning("%s: this run deletes these photos, which were protected %s", output / IMAGES, why)
        return True

    def _facts(self) -> dict[str, Any]:
        """The facts about models and photos that checkpoints store."""
        groups = {"photos": self.photos, "consenting": self.consenting, "earlier": self.earlier}
        return {
            "base": model_hash(self.base.origin or Path(self.config.base)),
            "start": model_hash(self.start.origin or Path(self.config.pretrained_model_name_or_path)),
            "configurations": [configuration_hash(self.base), configuration_hash(self.start)],
            "code": code_hash(self.config.objective),
            **{name: {one: len(images) for one, images in of.instance.items()} for name, of in groups.items()},
            "safe": sorted({*self.photos.safe, *self.earlier.safe}),
            "pixels": {f"{name}/{one}": of.content_hash(one) for name, of in groups.items() for one in of.instance},
            "class": [sha256_file(file) for file in own_class_files(self.config, self.base)],
        }

    def _checkpoint(self, facts: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint to resume from, or None. Raises UserError if it does not fit this run."""
        found = checkpoints.find(Path(self.config.output_dir), self.config.resume_from_checkpoint)
        if found is not None:
            checkpoints.check(found, facts, self.config)
        return found

    def _may_replace(self, found: Checkpoint | None) -> bool:
        """Whether this run may use an output folder that holds something already."""
        output = Path(self.config.output_dir)
        return self.config.overwrite_output_dir or _lies_in(found, output) or self._loses_nothing(output, found)

    def _loses_nothing(self, output: Path, found: Checkpoint | None) -> bool:
        """Whether `output` holds nothing that would be missed if this run used it: neither a model nor newer steps."""
        if (output / MODEL).exists() or not output.is_dir():
            return False
        if found is not None:  # which a full disk may have sent to another place
            return all(checkpoints.step_of(folder) <= found.step for folder in checkpoints.find_all(output))
        # A run that was killed before its first checkpoint left no model either.
        return has_only_begun(output) or self.config.resume_from_checkpoint == checkpoints.LATEST

    def sizes(self) -> dict[str, int]:
        """Return what this run writes until its end, besides what is there already.

        Returns:
            {part of the output: bytes}. Of the model and the checkpoints they are a lower bound, of pictures an upper
            one.
        """
        config, output, one = self.config, Path(self.config.output_dir), picture_size(self.config.resolution**2)
        parts = {"model and checkpoints": self._model_size(output)}
        parts["class pictures"] = class_pictures_to_draw(config, self.own_class_pictures) * one
        if config.validation.steps:
            drawn = len(list((output / SAMPLES).glob("step-*[0-9].png")))
            validations = max(0, config.max_train_steps // config.validation.steps - drawn)
            parts["samples"] = validations * pictures_of_validation(config) * one
        if self.photo_job is not None:
            parts["protected photos"] = self.photo_job.saved.missing_size(output / IMAGES)
        if config.audit.enabled and self.audit_inputs is not None:
            parts["pictures of the audit"] = self.final_audit(self.audit_inputs).pictures_size(output)
        return parts

    def final_audit(self, inputs: AuditInputs) -> AuditWork:
        """Return the work of the audit at the end, as far as it is known: the base stands in for the hardened model."""
        plan = final_plan(self.config, inputs, self.base, self.base)
        photos = attacked_photos(inputs, self.photo_job) if self.photo_job is not None else {}
        return AuditWork.of_models(plan, plan.entries, inputs.photo_attacks, photos)

    def _model_size(self, output: Path) -> int:
        """Return how many bytes this run needs at least for checkpoints and model, besides what is there already."""
        config = self.config
        model = export_size(self.base, save_variant=config.save_variant, single_file=config.single_file)
        model += self.drawn_partners * picture_size(config.resolution**2)
        if not config.checkpointing_steps:
            return model
        parameters = sum(parameter.numel() for parameter in self.start.denoiser.parameters())
        one = checkpoints.smallest_size(parameters, average=bool(config.ema_decay))
        if config.max_train_steps >= config.pool.size + config.pool.benign_size:  # each attacker had its turn by then
            one += pool_size(self.start.denoiser, config, type(self.start))
        written = math.ceil(config.max_train_steps / config.checkpointing_steps)
        kept = min(config.checkpoints_total_limit or written, written)
        at_once = min(kept + 1, written)  # a checkpoint is complete before the oldest is deleted
        there = len(checkpoints.find_all(output))
        return max(model + one * max(0, kept - there), one * max(0, at_once - there))

    @property
    def unpaired_groups(self) -> list[dict[str, Tensor]]:
        """For `photos` and for `earlier`: {subject id: photos} of those whose partners the base model draws."""
        return [group.unpaired if self.config.pairs == "drawn" else {} for group in (self.photos, self.earlier)]

    @property
    def drawn_partners(self) -> int:
        """How many partners the base model draws."""
        return sum(len(images) for group in self.unpaired_groups for images in group.values())

    @property
    def encoded_photos(self) -> int:
        """How many photos and partners of all people are encoded for the hardening."""
        sets = [of for group in (self.photos, self.consenting, self.earlier) for of in (group.instance, group.safe)]
        return self.drawn_partners + sum(len(images) for of in sets for images in of.values())

    @property
    def pairs(self) -> str:
        """How protected photos are paired: "drawn", "folder", "folder and drawn", or "none"."""
        given = bool(self.photos.safe or self.earlier.safe)
        return " and ".join(["folder"] * given + ["drawn"] * any(self.unpaired_groups)) or "none"

    @property
    def held_out(self) -> bool:
        """Whether the last third of each protected person's photos is held out from the hardening."""
        return self.audit_inputs is not None and self.audit_inputs.subjects.held_out_from == "originals"

    @property
    def about(self) -> AboutPhotos:
        """What model card and manifest say about the photos."""
        return {"pairs": self.pairs, "held_out": LAST_THIRD if self.held_out else None}

    @torch.no_grad()
    def encode(self) -> tuple[dict[str, list[SubjectData]], ...]:
        """Encode the photos of all people. Missing class pictures and partners are drawn first.

        Returns:
            {subject id: variants of the subject's data} of the protected people, of the consenting people, and of the
            people whom `start` already protects. The data is on the model's device.

        Raises:
            UserError: the audit could not measure likeness by chance.
        """
        pictures = class_pictures(self.config, self.base)
        self._check_chance(pictures)
        class_images = encode_images(self.base, pictures, batch_size=self.config.sample_batch_size)
        sets = [each for each in (*self.photos.sets, *self.earlier.sets) if each.role is not Role.SAFE]
        drawn, drawn_earlier = draw_partners(self.config, self.base, self.unpaired_groups, sets)
        photos = replace(self.photos, safe={**self.photos.safe, **drawn})
        earlier = replace(self.earlier, safe={**self.earlier.safe, **drawn_earlier})
        groups = photos, self.consenting, earlier
        return tuple(encode_subjects(self.config, self.base, group, class_images) for group in groups)

    def _check_chance(self, pictures: Tensor) -> None:
        """Raise UserError if there are no photos of strangers, and the base's class pictures show no face either.

        If few of them show one, that is a warning. The audit draws other class pictures and would find both too, but
        only after the hardening.
        """
        inputs = self.audit_inputs
        drawn = self.config.audit.enabled and not self.own_class_pictures  # which would say nothing of the model
        if not drawn or inputs is None or inputs.judges.face_score is None:
            return
        _, detected = inputs.judges.detect(pictures)
        warn_of_few_faces(inputs.judges, detected)
        if inputs.subjects.strangers is None:
            require_face(detected, option="audit.strangers_data_dir")


def attacked_photos(audit: AuditInputs, photo_job: PhotoJob) -> dict[str, int]:
    """{person: how many protected photos the audit attacks with}."""
    if audit.subjects.held_out_from == "originals":
        return audit.subjects.counts.attacked
    return {person: len(photos) for person, photos in photo_job.photos.items()}


def check_base(config: HardenConfig, base: Family) -> list[PhotoSet]:
    """Check the options against the original model.

    Returns:
        The user's own class pictures, see `load_own_class_pictures`.

    Raises:
        UserError: a prompt, the class pictures or the form of the export do not fit the model.
    """
    steps = {"num_inference_steps": config.num_inference_steps}
    if config.validation.steps:
        steps["validation.num_inference_steps"] = config.validation.num_inference_steps
    if config.audit.enabled:
        steps["audit.num_inference_steps"] = config.audit.num_inference_steps
    with Faults() as faults:
        faults.of(lambda: check_harden_prompts(config, base))
        faults.of(lambda: check_steps(base, steps))
        own = faults.of(lambda: load_own_class_pictures(config, base))
        if config.single_file:
            check_single_file(base)
    return own


def _lies_in(found: Checkpoint | None, output: Path) -> bool:
    return found is not None and found.folder.resolve().parent == output.resolve()


def check_harden_prompts(config: HardenConfig, base: Family) -> None:
    """Check all prompts of the run. Raises UserError if the model cannot read them or tell them apart."""
    drawn = {"preservation.anchor_prompts": config.preservation.anchor_prompts}
    if config.validation.steps:
        drawn["validation.prompts"] = config.validation.prompts
    if config.audit.enabled:
        drawn["audit.prompts"] = config.audit.prompts
    if config.audit.edit_prompt:
        drawn["audit.edit_prompt"] = [config.audit.edit_prompt]
    learned = {
        "instance_prompt": [config.instance_prompt],
        "variety.instance_prompts": config.variety.instance_prompts,
    }
    check_prompts(base, learned=learned, class_prompt=config.class_prompt, drawn=drawn)
