"""The audit of protected photos within `apdm audit`: originals and protected ones, paired by name, attacked alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from apdm.attacks.faceid import FaceIDAdapter
from apdm.audit.people import Person
from apdm.audit.photos import PhotoAudit, PhotoPair, check_specs, load_adapter, load_pair
from apdm.audit.store import CellStore
from apdm.config import AuditJobConfig
from apdm.core.errors import UserError
from apdm.data.subjects import find_subjects
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import IMAGES, PERTURBATION, PHOTO_CELLS
from apdm.families import Family, Posterior
from apdm.metrics.judges import Judges

PROTECTED = "protected"  # folder of the originals, in the folder of subjects


@dataclass(frozen=True)
class PhotoPlan:
    """Everybody's photos before and after, read and checked before any long work. figures: of what made them."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    figures: Mapping[str, Any]
    adapter: FaceIDAdapter | None

    @staticmethod
    def load(config: AuditJobConfig, base: Family, subjects: Sequence[Person]) -> PhotoPlan | None:
        """None where no protected photos are named. Raises UserError for photos that do not pair off."""
        check_specs(config, config.instance_prompt, config.class_prompt)
        if config.protected_photos is None:
            return None
        made = Path(config.protected_photos)
        originals = config.instance_data_dir or str(Path(config.subjects) / PROTECTED)
        try:
            figures = json.loads((made / PERTURBATION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{made} has no {PERTURBATION}; give protected_photos the output folder of apdm perturb"
            ) from None
        known, pairs = {person.id for person in subjects}, {}
        after = {subject.id: subject.images for subject in find_subjects(made / IMAGES)}
        for subject in find_subjects(originals):
            if subject.id not in known:
                raise UserError(f"{originals}/{subject.id} is nobody the audit has held-out photos of; add some")
            pairs[subject.id] = load_pair(subject, made / IMAGES, after.get(subject.id, []), config.resolution)
        adapter = load_adapter(config, allow_pickle=config.allow_pickle)
        if adapter is not None:
            adapter.check(base)
        return PhotoPlan(pairs, figures, adapter)

    def run(
        self,
        config: AuditJobConfig,
        base: Family,
        prior: Posterior,
        judges: Judges,
        subjects: Sequence[Person],
        output: Path,
        facts: Mapping[str, Any],
        processes: ProcessGroup,
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """results.json's "image_layer", and its pictures; None in all processes but the main one."""
        references = {person.id: judges.embed(person.references / 2 + 0.5) for person in subjects}
        done = PhotoAudit(
            config=config,
            base=base,
            class_images=prior,
            judges=judges,
            adapter=self.adapter,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            seed=config.seed,
            store=CellStore(output / PHOTO_CELLS, process=processes.index),
            facts=facts,
        ).run(
            {name: PhotoPair(clean, after, references[name]) for name, (clean, after) in self.pairs.items()}, processes
        )
        return None if done is None else ({**self.figures, "attacks": done[0]}, done[1])
