"""The audit: attack base and hardened model side by side, and say what likeness costs the attacker on each.

Models x people x seeds; each cell is one DreamBooth run whose pictures are drawn and judged at every
evaluation step. All draws of a cell come from its seed alone, so the two models' cells of one person and
seed are paired. A cell that fails is a row that says so; it never ends the audit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import probe_loss
from apdm.config import AuditConfig
from apdm.errors import UserError
from apdm.export import package_versions
from apdm.faces import FaceEncoder, FaceScore
from apdm.families import Family, Posterior
from apdm.files import write_text
from apdm.metrics.fidelity import Extractor, kernel_distance
from apdm.metrics.judges import Judges, Look
from apdm.metrics.utility import class_utility, strangers_band
from apdm.metrics.verdict import Row, add_row_figures, comparison, cost_factors, judge, other_subjects

ATTACK, CLASS, CLASS_AGAIN = range(3)  # streams of picture seeds
SAMPLE_BATCH_SIZE = 16
Draw = Callable[[Family, Sequence[str], int, int], Tensor]  # (model, prompts, seed, stream)


@dataclass(frozen=True)
class Person:
    """Someone to be learned: the attacker's `photos` [N, 3, R, R] and the `references` [M, 3, R, R] that
    define likeness, both in [-1, 1]. References that the attacker trains on make likeness look higher than
    it is."""

    id: str
    photos: Tensor
    references: Tensor


def audit(
    config: AuditConfig,
    *,
    base: Family,
    hardened: Family,
    subjects: Sequence[Person],
    others: Sequence[Person] = (),
    strangers: Tensor | None = None,
    class_images: Posterior | None = None,
    encoders: Sequence[FaceEncoder],
    face_score: FaceScore,
    extractor: Extractor,
    instance_prompt: str,
    class_prompt: str,
    seed: int = 0,
    nominal_step: int | None = None,
    models: Mapping[str, Mapping[str, str]] | None = None,
    command: str | None = None,
    show_progress: bool = True,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Attack both models on all people with all seeds, and judge.

    The nominal attack, whose likeness on the base is what there is to prevent, takes `nominal_step` steps.
    The base, and both models on other people, are attacked that long; the hardened model on the protected
    for `config.max_train_steps`, so that cost factors up to max_train_steps / nominal_step can be shown.

    Args:
        config: attack, drawing, thresholds.
        base, hardened: both are only read; attacks train copies of their denoisers.
        subjects: the protected, at least one. others: people who must stay learnable.
        strangers: photos of anybody else, [N, 3, R, R] in [-1, 1]: what likeness by chance is. Without them,
            the base's own class pictures say it.
        class_images: the attack's prior, drawn by the base; None only where `prior_loss_weight` is 0.
        encoders, face_score, extractor: see `apdm.faces` and `apdm.metrics.fidelity`.
        seed: of the first repeat.
        nominal_step: default `config.max_train_steps`.
        models: {"base": {"path", "sha256"}, "hardened": ...}, for the results.
    Returns:
        results.json's content, and pictures [N, 3, H, W] in [0, 1] by name: "class/<model>",
        "attack/<model>/<person>/<seed>" after the nominal attack and, with `config.show_photos`,
        "photos/<person>" of the protected. Picture i of both models starts from equal noise.
    Raises:
        UserError: nobody to protect, two people of one id, no class images for the prior, a nominal step out
            of reach, or no way to know the likeness of strangers.
    """
    nominal_step = config.max_train_steps if nominal_step is None else nominal_step
    _check(config, subjects, others, class_images, nominal_step)
    judges = Judges(encoders, face_score, extractor)
    seeds = list(range(seed, seed + config.seeds))
    height, width = subjects[0].photos.shape[-2:]
    draw = partial(_draw, config, height=height, width=width)
    class_pictures = _draw_class(draw, config.num_class_images, base, hardened, class_prompt, seed)
    class_looks = {name: judges.look(images) for name, images in class_pictures.items()}
    references = {person.id: judges.embed(_unit(person.references)) for person in [*subjects, *others]}
    protected = {person.id: references[person.id] for person in subjects}
    results: dict[str, Any] = {
        "schema": 1,
        "command": command,
        "package": package_versions(),
        "seeds": seeds,
        "models": {name: dict(facts) for name, facts in (models or {}).items()},
        "subjects": list(protected),
        "judges": judges.describe(),
        "strangers": _strangers(judges, protected, strangers, class_looks["base"]),
    }
    cells = _Cells(
        config=config,
        draw=draw,
        judges=judges,
        references=references,
        class_images=class_images,
        class_features=class_looks["base"].features,
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        nominal_step=nominal_step,
    )
    people = [(person, "protected") for person in subjects] + [(person, "other") for person in others]
    rows = cells.run({"base": base, "hardened": hardened}, people, seeds, show_progress=show_progress)
    add_row_figures(rows)
    results["attacks"] = rows
    results["utility"] = class_utility(class_looks) | {"other_subjects": other_subjects(rows, judges.names)}
    results["comparison"] = comparison(rows, judges.names)
    results["cost_factor"] = cost_factors(rows, judges.names, nominal_step)
    results["verdict"] = judge(results, config)
    pictures = {"class/base": class_pictures["base_again"], "class/hardened": class_pictures["hardened"]}
    pictures |= cells.pictures
    if config.show_photos:
        pictures |= {f"photos/{person.id}": _unit(person.photos) for person in subjects}
    return results, pictures


def write_results(results: Mapping[str, Any], path: str | Path) -> None:
    """Write `results` as strict JSON, beside and renamed."""
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


# -- the cells -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Cells:
    """What is equal in all cells, and what they share so that nothing is drawn or encoded twice."""

    config: AuditConfig
    draw: Draw
    judges: Judges
    references: Mapping[str, Mapping[str, Tensor]]
    class_images: Posterior | None
    class_features: Tensor
    instance_prompt: str
    class_prompt: str
    nominal_step: int
    pictures: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[tuple[str, str], Posterior] = field(default_factory=dict)
    before_attack: dict[tuple[str, int], tuple[Tensor, Look]] = field(default_factory=dict)

    def run(
        self,
        models: Mapping[str, Family],
        people: Sequence[tuple[Person, str]],
        seeds: Sequence[int],
        *,
        show_progress: bool,
    ) -> list[Row]:
        """One row for each model, (person, role) and seed, under one progress bar that counts steps."""
        total = sum(self._steps(model, role) for model in models for _, role in people) * len(seeds)
        rows: list[Row] = []
        with tqdm(total=total, unit="step", disable=not show_progress) as bar:
            for model, family in models.items():
                for person, role in people:
                    for seed in seeds:
                        bar.set_description(f"attack {model}/{person.id}/seed {seed}")
                        rows.append(self._cell(model, person, role, seed, family, bar))
        return rows

    def _steps(self, model: str, role: str) -> int:
        long = model == "hardened" and role == "protected"
        return self.config.max_train_steps if long else self.nominal_step

    def _attack(self, max_train_steps: int, seed: int) -> DreamBooth:
        return DreamBooth(
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            learning_rate=self.config.learning_rate,
            max_train_steps=max_train_steps,
            train_batch_size=self.config.train_batch_size,
            prior_loss_weight=self.config.prior_loss_weight,
            seed=seed,
        )

    def _cell(
        self,
        model: str,
        person: Person,
        role: str,
        seed: int,
        family: Family,
        bar: tqdm[Any],
    ) -> Row:
        """Attack once: one row of the results."""
        attack, subject = self._attack(self._steps(model, role), seed), person.id
        row: Row = {"attack": attack.name, "params": attack.params(), "model": model, "role": role}
        row |= {"subject": subject, "seed": seed, "identity": {}, "quality": {}, "scores": {}, "curve": []}

        def evaluate(step: int, victim: Family) -> None:
            images, look = self._look(model, victim, attack, step)
            point = self._point(look, subject)
            loss = probe_loss(victim, latents, attack.instance_prompt)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the denoising error on the photos is {loss} after step {step}")
            row["curve"].append({"step": step, **point, "loss": loss})
            if step == self.nominal_step:
                row.update(point, scores=self._scores(look, subject))
                self.pictures[f"attack/{model}/{subject}/{seed}"] = images

        def progress(step: int, loss: float) -> None:
            bar.update()

        eval_steps = {0, self.nominal_step, *self.config.measured_steps}
        status, error, started, end = "ok", None, time.perf_counter(), bar.n + attack.max_train_steps
        try:
            latents = self._latents(model, family, person)
            attack.run(
                family,
                Material(latents, self.class_images, person.photos),
                eval_steps={step for step in eval_steps if step <= attack.max_train_steps},
                evaluate=evaluate,
                callback=progress,
            )
        except Exception as problem:  # whatever went wrong, the other cells are worth having
            status, error = "failed", f"{type(problem).__name__}: {' '.join(str(problem).split())}"
            row.update(identity={}, quality={}, scores={})
            bar.update(end - bar.n)
        return row | {"seconds": round(time.perf_counter() - started, 3), "status": status, "error": error}

    def _latents(self, model: str, victim: Family, person: Person) -> Posterior:
        """The photos as this model's VAE encodes them, once for all seeds."""
        if (model, person.id) not in self.latents:
            with torch.no_grad():
                self.latents[model, person.id] = victim.posterior(person.photos)
        return self.latents[model, person.id]

    def _look(self, model: str, victim: Family, attack: DreamBooth, step: int) -> tuple[Tensor, Look]:
        """Draw the attacker's prompts and judge the pictures; before the attack, once for all people."""
        seed = attack.seed
        if step == 0 and (model, seed) in self.before_attack:
            return self.before_attack[model, seed]
        prompts = [attack.prompt(prompt) for prompt in self.config.prompts for _ in range(self.config.num_images)]
        images = self.draw(victim, prompts, seed, ATTACK)
        look = self.judges.look(images)
        if step == 0:
            self.before_attack[model, seed] = images, look
        return images, look

    def _point(self, look: Look, subject: str) -> dict[str, Any]:
        few = min(len(look.features), len(self.class_features)) < 2
        return {
            "identity": self.judges.identity(look, self.references[subject]),
            "quality": {
                "face_score": _finite(look.face_scores.mean().item()),
                "kid_to_class": None if few else _finite(kernel_distance(look.features, self.class_features)),
            },
        }

    def _scores(self, look: Look, subject: str) -> dict[str, list[float | None]]:
        """Likeness of every single picture, None where there is no face."""
        scores = self.judges.scores(look, self.references[subject])
        return {
            name: [round(v.item(), 4) if face else None for v, face in zip(values, look.detected, strict=True)]
            for name, values in scores.items()
        }


# -- the models before any attack ----------------------------------------------------------------------------


def _draw_class(
    draw: Draw, count: int, base: Family, hardened: Family, class_prompt: str, seed: int
) -> dict[str, Tensor]:
    """Class pictures: the base's with two sets of seeds, the hardened model's with the second.

    So "hardened" stands to "base" as "base_again" does, and two equal models have an FID ratio of exactly 1.
    """
    prompts = [class_prompt] * count
    return {
        "base": draw(base, prompts, seed, CLASS),
        "base_again": draw(base, prompts, seed, CLASS_AGAIN),
        "hardened": draw(hardened, prompts, seed, CLASS_AGAIN),
    }


def _draw(
    config: AuditConfig,
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


def _strangers(
    judges: Judges, protected: Mapping[str, Mapping[str, Tensor]], photos: Tensor | None, drawn: Look
) -> dict[str, Any]:
    if photos is None and not drawn.detected.any():
        raise UserError("the base draws no face for the class prompt: give photos in audit.strangers_data_dir")
    return strangers_band(protected, None if photos is None else judges.embed(_unit(photos)), drawn)


# -- small things --------------------------------------------------------------------------------------------


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


def _check(
    config: AuditConfig,
    subjects: Sequence[Person],
    others: Sequence[Person],
    class_images: Posterior | None,
    nominal_step: int,
) -> None:
    if not subjects:
        raise UserError("there is nobody to audit: give at least one protected subject")
    ids = sorted(person.id for person in [*subjects, *others])
    if twice := [a for a, b in zip(ids, ids[1:], strict=False) if a == b]:
        raise UserError(f'two people have the id "{twice[0]}": rename one folder')
    if config.prior_loss_weight and class_images is None:
        raise UserError("audit.prior_loss_weight is above 0 but there are no class pictures: draw some or set it to 0")
    if not 0 < nominal_step <= config.max_train_steps:
        raise UserError(
            f"the nominal attack of {nominal_step} steps is not within audit.max_train_steps = "
            f"{config.max_train_steps}: raise the latter"
        )
