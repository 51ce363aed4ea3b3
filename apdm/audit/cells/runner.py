"""Runs the cells of an audit.

The attacked model draws pictures at every measured step, and the pictures are judged. All random numbers of a cell come
from its seed. So cells of the same attack, person and seed use the same random numbers on every model, and can be
compared as pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.parts.batches import probe_loss
from apdm.audit.cells.attention import identifier_maps
from apdm.audit.cells.cell import COURSE_PICTURES, Cell, CellMeasurements
from apdm.audit.cells.judging import (
    References,
    check_finite,
    distance_to_class,
    editing_quality,
    person_quality,
    picture_scores,
)
from apdm.audit.inputs.plan import ATTACK_NOISE, AuditPlan
from apdm.audit.inputs.untrained import Untrained
from apdm.audit.results.models import AttackRow, CurvePoint
from apdm.core.devices import free_memory
from apdm.core.errors import one_line
from apdm.core.pictures import to_signed
from apdm.core.signals import interruption_in
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.metrics.judges import Features

SHOWN_MAPS = 4


class CellRunner:
    """Runs the cells of a plan. It keeps what cells have in common, so that nothing is drawn or encoded twice.

    Args:
        plan: the models, the people, the judges and the drawing.
        class_images: latents of the attacker's class pictures, for prior preservation.
        class_features: features [N, F] of the base's class pictures; None without a network for them.
        keep: called with every attack that succeeded and its model; None keeps no model.

    Attributes:
        references: {person: what the judges read from the hold-out photos}.
    """

    def __init__(
        self,
        plan: AuditPlan,
        class_images: Posterior,
        class_features: Tensor | None,
        *,
        keep: Callable[[Cell, Family], None] | None = None,
    ) -> None:
        self.plan, self.class_images, self.class_features, self.keep = plan, class_images, class_features, keep
        self.judges, self.models, self.drawing = plan.judges, plan.models, plan.drawing
        everybody = [*plan.subjects.protected, *plan.subjects.others]
        self.references = {one.id: References.of(self.judges, one.references) for one in everybody}
        # {(model, person): latents of the person's photos}
        self._encoded: dict[tuple[str, str], Posterior] = {}
        # {(model, seed, prompts): the first COURSE_PICTURES pictures that the model draws before an attack, and what
        # the judges read from all of them, which at 1024 pixels may be 0.7 GB}
        self._untouched: dict[tuple[str, int, tuple[str, ...]], tuple[Tensor, Features]] = {}
        # {(model, person, prompt): the model's denoising error on the person's photos before an attack}
        self._first_losses: dict[tuple[str, str, str], float] = {}

    def run(self, cell: Cell, progress: Callable[[int, Tensor], None]) -> tuple[AttackRow, dict[str, Tensor]]:
        """Run a cell.

        An error of the attack is not raised, so that the other cells still run. An Interrupted, which `progress` may
        raise, ends the cell.

        Args:
            progress: called after every attack step with the number of steps done and the last step's loss.

        Returns:
            The row, and pictures {name: [N, 3, H, W] in [0, 1]}: "attacked", "course" (the first COURSE_PICTURES of
            every step of the row's curve, small, in the order of the steps), and "attention" if there are attention
            maps. If the attack failed, the row has the error and there are no pictures.
        """
        measured, family = CellMeasurements(), self.models[cell.model]
        error, attacked, started = None, None, time.perf_counter()
        try:
            latents = self._latents(cell.model, cell.person.id, cell.person.photos)

            def evaluate(step: int, attacked: Family) -> None:
                began = time.perf_counter()
                self._measure(cell, measured, step, attacked, latents)
                measured.seconds += time.perf_counter() - began

            others = {name: model for name, model in self.models.items() if name != "placebo"}
            unrelated = self.plan.subjects.consenting
            consenting = None if unrelated is None else self._latents(cell.model, "", unrelated)
            with self._others_put_aside(cell):
                attacked = cell.attack.run(
                    family,
                    Material(
                        latents,
                        self.class_images,
                        to_signed(cell.person.photos),
                        others,
                        consenting=consenting,
                        adapter=self.plan.adapter,
                        edits=self.plan.edits.get(cell.person.id),
                        captions=cell.person.captions,
                    ),
                    eval_steps=cell.eval_steps,
                    evaluate=evaluate,
                    callback=progress,
                )
        except Exception as problem:  # a failed attack must not stop the other cells
            if interruption_in(problem):
                raise
            error = f"{type(problem).__name__}: {one_line(problem)}"
            measured = CellMeasurements(curve=measured.curve)
        if error is not None:  # so that the next cell does not run out of memory too; the traceback is gone by now
            free_memory()
        seconds = round(time.perf_counter() - started, 3)
        if self.keep is not None and attacked is not None:
            self.keep(cell, attacked.model)
        return cell.row(measured, seconds=seconds, error=error), measured.pictures

    @contextmanager
    def _others_put_aside(self, cell: Cell) -> Iterator[None]:
        """Keep the denoisers of the other models in main memory during an attack that does not need them."""
        family = self.models[cell.model]
        device, needed = family.denoiser.device, bool(getattr(cell.attack, "needs", ()))
        idle = [] if needed else [m.denoiser for m in self.models.values() if m.denoiser is not family.denoiser]
        for denoiser in idle:
            denoiser.to("cpu")
        try:
            yield
        finally:
            for denoiser in idle:
                denoiser.to(device)

    def _measure(self, cell: Cell, measured: CellMeasurements, step: int, attacked: Family, latents: Posterior) -> None:
        """Draw and judge pictures after `step` attack steps, and add the figures to `measured`."""
        trained = not isinstance(cell.attack, Untrained)  # an attack without training draws from the photos at once
        untouched = 0 == step < cell.nominal_step and trained and _is_untouched(attacked, self.models[cell.model])
        images, features = self._draw(cell, attacked, untouched)
        references = self.references[cell.person.id]
        identity = self.judges.identity(features, references.embeddings)
        quality = person_quality(self.judges, features, references)
        quality["kernel_distance_to_class"] = distance_to_class(features, self.class_features)
        loss = self._loss(cell, attacked, latents, untouched)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the denoising error on the photos is {loss} after step {step}")
        point = CurvePoint(step=step, identity=identity, quality=quality, loss=loss)
        measured.curve.append(point)
        measured.add_to_course(images)
        if step == cell.nominal_step:
            measured.nominal = point
            measured.scores = picture_scores(self.judges, features, references)
            measured.quality = quality | {"brisque": self.judges.brisque(images)} | self._edit_quality(cell, images)
            measured.pictures["attacked"] = images
            prompt = cell.attack.prompt(self.drawing.prompts[0])
            maps = identifier_maps(
                attacked, images[:SHOWN_MAPS], prompt, self.plan.class_prompt, batch_size=self.drawing.batch_size
            )
            if maps is not None:
                measured.pictures["attention"] = maps

    def _latents(self, model: str, person: str, photos: Tensor) -> Posterior:
        """The latents of photos from this model's VAE. Those of a person are computed once for all seeds."""
        if (model, person) not in self._encoded:
            batch_size = self.drawing.batch_size
            self._encoded[model, person] = encode_images(self.models[model], photos, batch_size=batch_size)
        return self._encoded[model, person]

    def _loss(self, cell: Cell, attacked: Family, latents: Posterior, untouched: bool) -> float:
        """The denoising error on the photos. Before an attack changes the model it is computed only once."""
        known = (cell.model, cell.person.id, cell.attack.instance_prompt)
        if untouched and known in self._first_losses:
            return self._first_losses[known]
        loss = probe_loss(attacked, latents, cell.attack.instance_prompt)
        if untouched:
            self._first_losses[known] = loss
        return loss

    def _draw(self, cell: Cell, attacked: Family, untouched: bool) -> tuple[Tensor, Features]:
        """Draw pictures for the attacker's prompts, and run the judges' networks on them.

        Before the attack changes the model, the pictures do not depend on the person, so they are drawn only once. Only
        the course of the attack shows them, so the first ones are kept and returned.
        """
        drawing = self.drawing
        prompts = cell.prompts(drawing)
        known = (cell.model, cell.seed, tuple(prompts))
        if untouched and known in self._untouched:
            return self._untouched[known]
        images = drawing.draw(attacked, prompts, cell.seed, ATTACK_NOISE, like=cell.person.photos)
        check_finite(images)
        features = self.judges.features(images)
        if untouched:
            self._untouched[known] = images[:COURSE_PICTURES].clone(), features
        return images, features

    def _edit_quality(self, cell: Cell, images: Tensor) -> dict[str, float | None]:
        """How edited pictures relate to their photos; empty for attacks that edit nothing."""
        if not (isinstance(cell.attack, Untrained) and cell.attack.edits_photos):
            return {}
        photos, edits = cell.person.photos, self.plan.edits.get(cell.person.id)
        asked, shown = cell.prompts(self.drawing), [self.plan.class_prompt] * len(images)
        if edits is not None:
            turns = [edits[place % len(photos)] for place in range(len(images))]
            asked, shown = [one.prompt for one in turns], [one.source or self.plan.class_prompt for one in turns]
        return editing_quality(self.judges, images, photos, asked, shown)


def _is_untouched(attacked: Family, model: Family) -> bool:
    """Whether no part of the attacked model differs from `model`. Some attacks change parts before their first step."""
    if attacked.drawing != model.drawing:
        return False
    for name, theirs in model.pipeline.components.items():
        mine = attacked.pipeline.components[name]
        if mine is theirs:
            continue
        if not isinstance(theirs, Module):
            return False  # for example a tokenizer to which the attack added words
        first, second = mine.state_dict(), theirs.state_dict()
        if first.keys() != second.keys() or not all(map(_equal, first.values(), map(second.get, first))):
            return False
    return True


def _equal(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and torch.equal(first, second)
