"""What the image layer is worth: the same attacks on a person's photos as they were and as they are shipped.

On the base model, since protected photos are meant for models that nobody hardened. Arms are paired: equal draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.faceid import FaceIDAdapter
from apdm.config import AuditConfig
from apdm.errors import UserError
from apdm.faces import load_encoder
from apdm.families import Family, Posterior
from apdm.metrics.judges import Judges

ARMS = ("clean", "protected")
PICTURE_SEED = 7_000_000  # away from the seeds of the weight audit's pictures
SAMPLE_BATCH_SIZE = 16


@dataclass(frozen=True)
class PhotoPair:
    """A protected person's photos before and after, `[N, 3, R, R]` in [-1, 1] as a trainer sees them, and reference
    embeddings {encoder: [M, D]}."""

    clean: Tensor
    protected: Tensor
    references: Mapping[str, Tensor]


def load_adapter(config: AuditConfig) -> FaceIDAdapter | None:
    """The zero-shot adapter of the audit, None where none is named. Raises UserError for a bad encoder."""
    if config.faceid_adapter is None:
        return None
    return FaceIDAdapter(path=Path(config.faceid_adapter), encoder=load_encoder(config.faceid_encoder))


@dataclass(frozen=True, kw_only=True)
class PhotoAudit:
    """The attacks on photos, and what they share. adapter: None leaves the zero-shot attack out."""

    config: AuditConfig
    base: Family
    class_images: Posterior
    judges: Judges
    adapter: FaceIDAdapter | None
    instance_prompt: str
    class_prompt: str
    seed: int

    def run(self, people: Mapping[str, PhotoPair]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Attack everybody's clean and protected photos: rows for results.json, and pictures [N, 3, H, W] in [0, 1]
        under "layer/<attack>/<arm>/<person>". An attack that fails is a row that says so."""
        attacks: dict[str, Callable[[Tensor], Tensor]] = {"dreambooth": self.dreambooth}
        if self.adapter is not None:
            attacks["faceid"] = self.faceid
        rows, pictures = [], {}
        for person, pair in people.items():
            for name, attack in attacks.items():
                for arm in ARMS:
                    row, images = self._row(name, attack, arm, person, pair)
                    rows.append(row)
                    if images is not None:
                        pictures[f"layer/{name}/{arm}/{person}"] = images
        return rows, pictures

    def dreambooth(self, photos: Tensor) -> Tensor:
        """Pictures for the audit's first prompt, after the nominal attack with `photos` [N, 3, R, R] in [-1, 1]."""
        with torch.no_grad():
            latents = self.base.posterior(photos)
        victim = self._nominal().run(self.base, Material(latents, self.class_images)).model
        return victim.sample([self.config.prompts[0]] * self.config.num_images, **self._drawing(photos))

    def faceid(self, photos: Tensor) -> Tensor:
        """Pictures for the class prompt with the adapter on the first of `photos`."""
        if self.adapter is None:
            raise UserError("there is no zero-shot adapter: name one with audit.faceid_adapter")
        victim, prompts = self.adapter.victim(self.base), [self.class_prompt] * self.config.num_images
        return self.adapter.run(victim, photos[:1] / 2 + 0.5, prompts, **self._drawing(photos))

    def _row(
        self, name: str, attack: Callable[[Tensor], Tensor], arm: str, person: str, pair: PhotoPair
    ) -> tuple[dict[str, Any], Tensor | None]:
        status, error, identity, images, started = "ok", None, {}, None, time.perf_counter()
        try:
            images = attack(pair.clean if arm == "clean" else pair.protected)
            identity = self.judges.identity(self.judges.look(images), pair.references)
        except Exception as problem:  # whatever went wrong, the other rows are worth having
            status, error = "failed", f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        row = {"attack": name, "params": self._params(name), "photos": arm, "subject": person, "seed": self.seed}
        seconds = round(time.perf_counter() - started, 3)
        return row | {"identity": identity, "seconds": seconds, "status": status, "error": error}, images

    def _params(self, name: str) -> dict[str, object]:
        return self.adapter.params() if name == "faceid" and self.adapter else self._nominal().params()

    def _nominal(self) -> DreamBooth:
        return DreamBooth(
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            learning_rate=self.config.learning_rate,
            max_train_steps=self.config.nominal_step or self.config.max_train_steps,
            train_batch_size=self.config.train_batch_size,
            prior_loss_weight=self.config.prior_loss_weight,
            seed=self.seed,
        )

    def _drawing(self, photos: Tensor) -> dict[str, Any]:
        return {
            "seed": self.seed + PICTURE_SEED,
            "num_inference_steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
            "height": photos.shape[-2],
            "width": photos.shape[-1],
            "batch_size": SAMPLE_BATCH_SIZE,
        }
