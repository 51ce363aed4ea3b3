"""One cell of the matrix: one attack on one model, of one person, with one seed; drawn and judged while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from apdm.attacks import Attack, Material
from apdm.attacks.fine_tuning import probe_loss
from apdm.audit.attention import identifier_maps
from apdm.audit.people import Person
from apdm.audit.rows import Row
from apdm.audit.suites import Entry
from apdm.config import AuditOptions
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.metrics.fidelity import kernel_distance
from apdm.metrics.judges import Features, Judges

ATTACK, CLASS, CLASS_AGAIN = range(3)  # streams of picture seeds
SAMPLE_BATCH_SIZE = 16
SHOWN_MAPS = 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is done in a cell. nominal_step: where the attack counts as done. key: names all that determines it."""

    entry: Entry
    attack: Attack
    model: str
    person: Person
    role: str
    seed: int
    nominal_step: int
    eval_steps: frozenset[int]
    key: str

    @property
    def steps(self) -> int:
        return max(1, self.attack.max_train_steps)

    def row(self) -> Row:
        """The row before anything was measured."""
        return {
            "attack": self.attack.name,
            "spec": self.entry.spec,
            "params": self.attack.params(),
            "assumes": self.attack.assumes,
            "white_box": self.entry.white_box,
            "required": self.entry.required,
            "long": self.entry.long,
            "model": self.model,
            "role": self.role,
            "subject": self.person.id,
            "seed": self.seed,
            "nominal_step": self.nominal_step,
            "horizon": self.attack.max_train_steps,
            "identity": {},
            "quality": {},
            "scores": {},
            "curve": [],
        }


@dataclass(kw_only=True)
class Attacker:
    """What is equal in all cells, and what they share so that nothing is drawn or encoded twice.

    references: {person: {encoder: embeddings}}. models: by arm, and what else an attacker may have.
    """

    config: AuditOptions
    judges: Judges
    models: Mapping[str, Family]
    references: Mapping[str, Mapping[str, Tensor]]
    reference_features: Mapping[str, Tensor]
    class_images: Posterior | None
    class_features: Tensor
    class_prompt: str
    consenting: Tensor | None = None
    latents: dict[tuple[str, str], Posterior] = field(default_factory=dict)
    untouched: dict[tuple[str, int, tuple[str, ...]], tuple[Tensor, Features]] = field(default_factory=dict)

    def run(self, cell: Cell, progress: Callable[[int, float], None]) -> tuple[Row, dict[str, Tensor]]:
        """The row of a cell and its pictures. Whatever goes wrong inside, the row says so."""
        row = cell.row()
        pictures: dict[str, Tensor] = {}
        family = self.models[cell.model]

        def evaluate(step: int, attacked: Family) -> None:
            images, look = self._look(cell, attacked, step)
            point = self._point(look, cell.person.id)
            loss = probe_loss(attacked, latents, cell.attack.instance_prompt)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the denoising error on the photos is {loss} after step {step}")
            row["curve"].append({"step": step, **point, "loss": loss})
            if step == cell.nominal_step:
                row.update(point, scores=self._scores(look, cell.person.id))
                row["quality"] = point["quality"] | {"brisque": self.judges.brisque(images)}
                pictures["attacked"] = images
                prompt = cell.attack.prompt(self.config.prompts[0])
                maps = identifier_maps(attacked, images[:SHOWN_MAPS], prompt, self.class_prompt)
                if maps is not None:
                    pictures["attention"] = maps

        status, error, started = "ok", None, time.perf_counter()
        try:
            latents = self._latents(cell.model, family, cell.person)
            others = {name: model for name, model in self.models.items() if name != "placebo"}
            cell.attack.run(
                family,
                Material(
                    latents, self.class_images, cell.person.photos, others, consenting=self._consenting(cell.model)
                ),
                eval_steps=cell.eval_steps,
                evaluate=evaluate,
                callback=progress,
            )
        except Exception as problem:  # whatever went wrong, the other cells are worth having
            status, error = "failed", f"{type(problem).__name__}: {' '.join(str(problem).split())}"
            row.update(identity={}, quality={}, scores={})
            pictures = {}
            _free_memory()
        return row | {"seconds": round(time.perf_counter() - started, 3), "status": status, "error": error}, pictures

    def _latents(self, model: str, attacked: Family, person: Person) -> Posterior:
        """The photos as this model's VAE encodes them, once for all seeds."""
        if (model, person.id) not in self.latents:
            with torch.no_grad():
                self.latents[model, person.id] = attacked.posterior(person.photos)
        return self.latents[model, person.id]

    def _consenting(self, model: str) -> Posterior | None:
        if self.consenting is None:
            return None
        if (model, "") not in self.latents:
            self.latents[model, ""] = encode_images(self.models[model], self.consenting, batch_size=SAMPLE_BATCH_SIZE)
        return self.latents[model, ""]

    def _look(self, cell: Cell, attacked: Family, step: int) -> tuple[Tensor, Features]:
        """Draw the attacker's prompts and judge the pictures; of a model as it came, once for all people."""
        asked = [cell.attack.prompt(prompt) for prompt in self.config.prompts for _ in range(self.config.num_images)]
        known = (cell.model, cell.seed, tuple(asked))
        fresh = step == 0 and _is_untouched(attacked, self.models[cell.model])
        if fresh and known in self.untouched:
            return self.untouched[known]
        height, width = cell.person.photos.shape[-2:]
        images = draw(self.config, attacked, asked, cell.seed, ATTACK, height=height, width=width)
        check_finite(images)
        look = self.judges.features(images)
        if fresh:
            self.untouched[known] = images, look
        return images, look

    def _point(self, look: Features, subject: str) -> dict[str, Any]:
        few = min(len(look.extracted), len(self.class_features)) < 2
        return {
            "identity": {n: asdict(e) for n, e in self.judges.identity(look, self.references[subject]).items()},
            "quality": {
                "face_score": _finite(look.face_scores.mean().item()),
                "kid_to_class": None if few else _finite(kernel_distance(look.extracted, self.class_features)),
                "similarity": _finite(self.judges.similarity(look, self.reference_features[subject])),
            },
        }

    def _scores(self, look: Features, subject: str) -> dict[str, list[float | None]]:
        """Likeness of every single picture, None where there is no face."""
        scores = self.judges.scores(look, self.references[subject])
        return {
            name: [round(v.item(), 4) if face else None for v, face in zip(values, look.detected, strict=True)]
            for name, values in scores.items()
        }


def draw(
    config: AuditOptions,
    family: Family,
    prompts: Sequence[str],
    seed: int,
    stream: int,
    *,
    height: int,
    width: int,
) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1], picture i from noise that depends on `seed`, `stream` and i alone."""
    return family.sample(
        prompts,
        seed=np.random.SeedSequence((seed, stream)).generate_state(len(prompts)).tolist(),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        height=height,
        width=width,
        batch_size=SAMPLE_BATCH_SIZE,
    )


def check_finite(images: Tensor) -> None:
    """Raise FloatingPointError for pictures that are no numbers: they show no face, and would pass for protection."""
    if not images.isfinite().all():
        raise FloatingPointError("the pictures are not finite")


def _is_untouched(attacked: Family, model: Family) -> bool:
    """Whether the attacker's model still draws what `model` does: an attack may change it before its first step."""
    for name, theirs in model.pipeline.components.items():
        mine = attacked.pipeline.components[name]
        if mine is theirs:
            continue
        if not isinstance(theirs, Module):
            return False  # such as a tokenizer with words of the attacker's own
        first, second = mine.state_dict(), theirs.state_dict()
        if first.keys() != second.keys() or not all(map(_equal, first.values(), map(second.get, first))):
            return False
    return True


def _equal(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and torch.equal(first, second)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _free_memory() -> None:
    """What a cell that ran out of memory held is not to fail the next one."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
