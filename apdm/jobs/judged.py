"""The people an audit or a probe needs, the judges that look at them, and the audit of a finished job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from apdm.attacks.faceid import FaceIDAdapter
from apdm.audit import BUILT_IN, Audit, Person, audit, common_facts
from apdm.audit.people import Folders, People
from apdm.audit.photos import PhotoAudit, PhotoPair, check_specs, load_adapter, load_pair
from apdm.audit.store import CellStore
from apdm.audit.suites import AttackFactory, available, short_of_cost
from apdm.config import HardenConfig
from apdm.core.files import model_hash
from apdm.core.logging import get_logger
from apdm.data.subjects import find_subjects
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import CELLS, IMAGES, MODEL, PERTURBATION, PHOTO_CELLS
from apdm.families import Family, Posterior
from apdm.jobs.audit import attacker_prior, load_judges, write_all
from apdm.metrics.judges import Judges

logger = get_logger(__name__)

DIFFERENCE_GAIN = 10  # the report shows what was changed tenfold, around grey


@dataclass(frozen=True)
class JudgedPeople:
    """Everybody the audit of a hardening job looks at, and the judges."""

    config: HardenConfig
    judges: Judges
    people: People
    adapter: FaceIDAdapter | None = None

    @property
    def subjects(self) -> list[Person]:
        return self.people.subjects

    @staticmethod
    def load(config: HardenConfig, protected: list[str]) -> JudgedPeople:
        """Read and check everything the audit needs. Raises UserError for missing folders and photos."""
        options = config.audit
        folders = Folders(
            attack=options.attack_data_dir or config.instance_data_dir,
            holdout=options.holdout_data_dir,
            other=options.other_data_dir,
            strangers=options.strangers_data_dir,
        )
        people = folders.load(config.resolution, protected=protected, prefix=options.prefix)
        _check_attacks(config)
        adapter = load_adapter(options, allow_pickle=config.allow_pickle) if config.image_layer.enabled else None
        return JudgedPeople(config, load_judges(options), people, adapter)

    def probe(self, images: Tensor, subject: str) -> tuple[dict[str, float], bool]:
        """Likeness and face rate of `images` [N, 3, H, W] in [0, 1], and whether it is that of strangers."""
        person = next(p for p in self.subjects if p.id == subject)
        references = self.judges.embed(person.references / 2 + 0.5)
        look = self.judges.features(images)
        identity = self.judges.identity(look, references)
        chance = {name: 0.0 for name in identity}
        if self.people.strangers is not None:
            unknown = self.judges.features(self.people.strangers / 2 + 0.5)
            chance = {name: float(scores.mean()) for name, scores in self.judges.scores(unknown, references).items()}
        figures = {f"probe_likeness/{name}": entry.mean for name, entry in identity.items()}
        figures["probe_face_rate"] = float(look.detected.float().mean())
        margin = self.config.audit.max_likeness_over_strangers
        return figures, all(figures[f"probe_likeness/{name}"] <= chance[name] + margin for name in identity)

    def audit_and_report(
        self,
        base: Family,
        hardened: Family,
        output: Path,
        processes: ProcessGroup,
        *,
        command: str | None,
    ) -> None:
        """Attack both models, and the protected photos where there are any, sharing the attacks among `ranks`; the main
        process writes results.json and report.html."""
        config = self.config
        source = base.source or Path(config.base)
        base_hash = model_hash(source)
        prior = processes.main_first(
            lambda: attacker_prior(
                config.audit,
                base,
                output,
                class_prompt=config.class_prompt,
                base_hash=base_hash,
                seed=config.seed,
                resolution=config.resolution,
                batch_size=config.sample_batch_size,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                show_progress=processes.is_main,
            )
        )
        plan = Audit(
            config=config.audit,
            models={"base": base, "hardened": hardened},
            judges=self.judges,
            subjects=self.people.subjects,
            others=self.people.others,
            strangers=self.people.strangers,
            class_images=prior,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            seed=config.seed,
            nominal_step=config.audit.nominal_step,
            paths={
                "base": {"path": config.base, "sha256": base_hash},
                "hardened": {"path": MODEL, "sha256": model_hash(output / MODEL)},
            },
            command=command,
        )
        store = CellStore(output / CELLS, process=processes.index)
        done = audit(plan, store=store, processes=processes, show_progress=processes.is_main)
        layer = None
        if config.image_layer.enabled:
            layer = self._audit_photos(base, output, prior, common_facts(plan), processes)
        if done is None:
            return
        results, pictures = done
        if layer is not None:
            results["image_layer"], pictures = layer[0], pictures | layer[1]
        write_all(results, pictures, output)

    def _audit_photos(
        self, base: Family, output: Path, prior: Posterior, facts: Mapping[str, Any], processes: ProcessGroup
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The image layer's part of the results, and its pictures; None in all processes but the main one."""
        config, size = self.config, self.config.resolution
        people, saved = {}, {subject.id: subject.images for subject in find_subjects(output / IMAGES)}
        for subject in find_subjects(config.instance_data_dir):
            person = next(p for p in self.subjects if p.id == subject.id)
            clean, protected = load_pair(subject, output / IMAGES, saved.get(subject.id, []), size)
            people[subject.id] = PhotoPair(clean, protected, self.judges.embed(person.references / 2 + 0.5))
        done = PhotoAudit(
            config=config.audit,
            base=base,
            class_images=prior,
            judges=self.judges,
            adapter=self.adapter,
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt,
            seed=config.seed,
            store=CellStore(output / PHOTO_CELLS, process=processes.index),
            facts=facts,
        ).run(people, processes)
        if done is None:
            return None
        rows, pictures = done
        if config.audit.show_photos:
            for name, pair in people.items():
                pictures[f"layer/original/{name}"] = pair.clean / 2 + 0.5
                pictures[f"layer/shipped/{name}"] = pair.protected / 2 + 0.5
                pictures[f"layer/difference/{name}"] = 0.5 + DIFFERENCE_GAIN * (pair.protected - pair.clean) / 2
        return {**json.loads((output / PERTURBATION).read_text()), "attacks": rows}, pictures


def _check_attacks(config: HardenConfig) -> None:
    """Raise UserError for attacks that cannot be made; say where no audit by these options can show protection."""
    options = config.audit
    if not config.image_layer.enabled:  # a configuration that names an adapter may have its photos switched off
        options.refuse("purifiers", "photo_attacks", mend="set image_layer.enabled to true")
    available(BUILT_IN, ("base", "hardened"), AttackFactory.of(options, config.instance_prompt, config.class_prompt))
    check_specs(options, config.instance_prompt, config.class_prompt)
    short = short_of_cost(options, BUILT_IN)
    if short and options.enabled:
        logger.warning(short)
