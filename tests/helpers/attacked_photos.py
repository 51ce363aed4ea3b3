"""Attacks grey photos of one person on the bundled pipeline, as short as can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from apdm.attacks.faceid import FaceIDAdapter
from apdm.audit.inputs.people import AuditSubjects, Person
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import PhotoPair
from apdm.audit.photo_attacks import PhotoAudit
from apdm.audit.results.photos import PhotoAttackRow
from apdm.audit.results.store import CellStore
from apdm.config import AuditConfig
from apdm.faces import FaceChoice, FaceNetworks, load_encoder, load_encoders, load_face_score
from apdm.faces.portrait import PortraitFeatures
from apdm.families import load_family
from apdm.metrics.judges import Judges
from apdm.portraits import PIPELINE

PHOTOS = torch.zeros(2, 3, 64, 64)
FACES = FaceNetworks(FaceChoice())
PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of a person"}


def attack_photos(
    attack_path: Path,
    settings: dict[str, Any] | None = None,
    store: CellStore | None = None,
    protected: torch.Tensor = PHOTOS,
    clip: Any = None,
) -> tuple[list[PhotoAttackRow], dict[str, torch.Tensor]]:
    """Attack the bundled pipeline, as short as can be, with grey photos of one person."""
    family = load_family(PIPELINE)
    judges = Judges(load_encoders(["portrait-a"]), load_face_score("portrait-face"), PortraitFeatures(), clip=clip)
    with torch.no_grad():
        prior = family.posterior(PHOTOS)
    options = AuditConfig(max_train_steps=1, num_images=1, num_inference_steps=2, **(settings or {}))
    adapter = FaceIDAdapter(path=attack_path, encoder=load_encoder("portrait-a"))
    specs = replace(PhotoAttackSpecs.load(options, FACES, **PROMPTS, allow_pickle=False), adapter=adapter)
    subjects = AuditSubjects([Person("s01", PHOTOS, PHOTOS)], [])
    plan = AuditPlan(options=options, **PROMPTS, models={"base": family}, subjects=subjects, judges=judges)
    audit = PhotoAudit(plan, prior, specs, {"s01": PhotoPair(PHOTOS, protected)})
    with TemporaryDirectory() as folder:
        store = store or CellStore(Path(folder))
        audit.tidy(store)
        done = audit.run(store)
        assert done is not None
        return done[0], dict(done[1])
