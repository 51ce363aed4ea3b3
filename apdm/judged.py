"""The people an audit or a probe needs, the judges that look at them, and the audit of a finished job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks.faceid import FaceIDAdapter
from apdm.audit import Person, audit, write_results
from apdm.class_images import ClassImages
from apdm.config import HardenConfig
from apdm.data import encode_images
from apdm.errors import UserError
from apdm.faces import load_encoders, load_face_score
from apdm.faces.portrait import PortraitFeatures
from apdm.families import Family, Posterior
from apdm.files import model_hash
from apdm.metrics.judges import Judges
from apdm.perturb import FIGURES, PhotoJob
from apdm.photo_audit import PhotoAudit, PhotoPair, load_adapter
from apdm.pictures import grid, save_png, to_pil
from apdm.report import write_report
from apdm.subjects import find_subjects, list_images, load_images

COLUMNS = 4
DIFFERENCE_GAIN = 10  # the report shows what was changed tenfold, around grey
ATTACKER_SEED = 1_000_000  # the attacker draws class pictures of its own, not the defence's


@dataclass(frozen=True)
class JudgedPeople:
    """Photos [N, 3, R, R] in [-1, 1] of everybody, and the judges."""

    config: HardenConfig
    judges: Judges
    subjects: list[Person]
    others: list[Person]
    strangers: Tensor | None
    adapter: FaceIDAdapter | None = None

    @staticmethod
    def load(config: HardenConfig, protected: list[str]) -> JudgedPeople:
        """Read and check everything the audit needs. Raises UserError for missing folders and photos."""
        options, size = config.audit, config.resolution
        references = _photos(options.holdout_data_dir, size)
        if not references:
            raise UserError(
                "the audit measures likeness on photos nobody trained on; "
                "name their folder with audit.holdout_data_dir, one sub-folder per subject"
            )
        attack = _photos(options.attack_data_dir or config.instance_data_dir, size)
        others = _photos(options.other_data_dir, size)
        for person in (*protected, *others):
            if person not in references:
                raise UserError(f"{options.holdout_data_dir} has no folder {person} with photos to measure likeness on")
        for person in protected:
            if person not in attack:
                raise UserError(f"{options.attack_data_dir} has no folder {person} with photos to attack with")
        judges = Judges(load_encoders(options.encoders), load_face_score(options.face_score), PortraitFeatures())
        strangers = None
        if options.strangers_data_dir:
            strangers = load_images(list_images(options.strangers_data_dir), size)
        return JudgedPeople(
            config,
            judges,
            [Person(id=person, photos=attack[person], references=references[person]) for person in protected],
            [Person(id=person, photos=photos, references=references[person]) for person, photos in others.items()],
            strangers,
            load_adapter(options) if config.image_layer.enabled else None,
        )

    def probe(self, images: Tensor, subject: str) -> tuple[dict[str, float], bool]:
        """Likeness and face rate of `images` [N, 3, H, W] in [0, 1], and whether it is that of strangers."""
        person = next(p for p in self.subjects if p.id == subject)
        references = self.judges.embed(person.references / 2 + 0.5)
        look = self.judges.look(images)
        identity = self.judges.identity(look, references)
        chance = {name: 0.0 for name in identity}
        if self.strangers is not None:
            unknown = self.judges.look(self.strangers / 2 + 0.5)
            chance = {name: float(scores.mean()) for name, scores in self.judges.scores(unknown, references).items()}
        figures = {f"probe_likeness/{name}": float(entry["mean"] or 0.0) for name, entry in identity.items()}
        figures["probe_face_rate"] = float(look.detected.float().mean())
        margin = self.config.audit.max_likeness_over_strangers
        return figures, all(figures[f"probe_likeness/{name}"] <= chance[name] + margin for name in identity)

    def audit_and_report(
        self,
        base: Family,
        hardened: Family,
        output: Path,
        *,
        command: str | None,
        photo_job: PhotoJob | None = None,
    ) -> None:
        """Attack both models, and the photos that `photo_job` has protected; writes results.json and report.html."""
        config = self.config
        source = base.source or Path(config.pretrained_model_name_or_path)
        recipe = ClassImages(
            prompt=config.class_prompt,
            model=model_hash(source),
            seed=config.seed + ATTACKER_SEED,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            resolution=config.resolution,
        )
        paths = recipe.ensure(
            base,
            output / "class_images_attacker",
            config.audit.num_class_images,
            batch_size=config.sample_batch_size,
            replace=True,
        )
        with torch.no_grad():
            prior = encode_images(base, load_images(paths, config.resolution), batch_size=config.sample_batch_size)
        results, pictures = audit(
            config.audit,
            base=base,
            hardened=hardened,
            subjects=self.subjects,
            others=self.others,
            strangers=self.strangers,
            class_images=prior,
            encoders=self.judges.encoders,
            face_score=self.judges.face_score,
            extractor=self.judges.extractor,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            seed=config.seed,
            nominal_step=config.audit.nominal_step,
            models={
                "base": {"path": config.pretrained_model_name_or_path, "sha256": model_hash(source)},
                "hardened": {"path": "model", "sha256": model_hash(output / "model")},
            },
            command=command,
        )
        if photo_job is not None:
            results["image_layer"], more = self._audit_photos(base, photo_job, output, prior)
            pictures |= more
        write_results(results, output / "results.json")
        for name, images in pictures.items():
            save_png(grid(images, COLUMNS), output / "pictures" / f"{name}.png")
        sheets = {name: [to_pil(image) for image in images] for name, images in pictures.items()}
        write_report(results, output / "report.html", sheets)

    def _audit_photos(
        self, base: Family, job: PhotoJob, output: Path, prior: Posterior
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The image layer's part of the results, and its pictures."""
        config, size = self.config, self.config.resolution
        people = {}
        for subject in find_subjects(config.instance_data_dir):
            person = next(p for p in self.subjects if p.id == subject.id)
            people[subject.id] = PhotoPair(
                clean=load_images(subject.images, size),
                protected=load_images(job.saved(output, subject.id), size),
                references=self.judges.embed(person.references / 2 + 0.5),
            )
        rows, pictures = PhotoAudit(
            config=config.audit,
            base=base,
            class_images=prior,
            judges=self.judges,
            adapter=self.adapter,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            seed=config.seed,
        ).run(people)
        if config.audit.show_photos:
            for name, pair in people.items():
                pictures[f"layer/original/{name}"] = pair.clean / 2 + 0.5
                pictures[f"layer/shipped/{name}"] = pair.protected / 2 + 0.5
                pictures[f"layer/difference/{name}"] = 0.5 + DIFFERENCE_GAIN * (pair.protected - pair.clean) / 2
        return {**json.loads((output / FIGURES).read_text()), "attacks": rows}, pictures


def _photos(folder: str | None, resolution: int) -> dict[str, Tensor]:
    """Subject id -> photos, of every subject in a folder; nobody where no folder is named."""
    if folder is None:
        return {}
    return {subject.id: load_images(subject.images, resolution) for subject in find_subjects(folder)}
