"""A cell of the audit: one attack on one model, with the photos of one person and one seed. And what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from apdm.attacks import Attack
from apdm.attacks.parts.captions import assumed, caption_column, drawn_captions
from apdm.audit.inputs.attack_factory import lengthened
from apdm.audit.inputs.people import Person
from apdm.audit.inputs.plan import AuditPlan, Drawing
from apdm.audit.inputs.suites import Entry
from apdm.audit.inputs.untrained import Untrained
from apdm.audit.results.budgets import samples_per_step
from apdm.audit.results.models import AttackRow, CurvePoint, PersonRole
from apdm.audit.results.store import key_of
from apdm.config.plugins import code_hash
from apdm.core.disk import picture_size
from apdm.core.pictures import at_most

COURSE_PICTURES, COURSE_SIDE = 2, 256  # kept at every measured step, and their longest side in pixels


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack on one model, with the photos of one person and one seed.

    Attributes:
        entry: the suite's entry, which holds the attack's spec.
        attack: the attack itself.
        model: name of the attacked model.
        person: the person whose photos the attack uses.
        role: whether the person is protected.
        seed: the seed of all random numbers.
        nominal_step: the step at which the attack counts as done.
        eval_steps: the steps at which the model draws and its pictures are judged.
        key: a hash of everything that determines the cell's row, see `store.key_of`.
    """

    entry: Entry
    attack: Attack
    model: str
    person: Person
    role: PersonRole
    seed: int
    nominal_step: int
    eval_steps: frozenset[int]
    key: str

    @property
    def steps(self) -> int:
        """Attack steps, for the progress bar; at least 1."""
        return max(1, self.attack.max_train_steps)

    @property
    def title(self) -> str:
        """The cell in words, for the progress bar."""
        return f"{self.entry.spec} {self.model}/{self.person.id}/seed {self.seed}"

    def prompts(self, drawing: Drawing) -> list[str]:
        """The prompt of each picture that the attacked model draws. Captions among them describe a person."""
        if captions := drawn_captions(self.attack, self.person.captions):
            return list(islice(cycle(captions), drawing.number))
        return [self.attack.prompt(prompt) for prompt in drawing.prompts for _ in range(drawing.num_images)]

    def pictures_size(self, drawn: int) -> int:
        """Return an upper bound of the bytes of the pictures that are kept of this cell.

        Args:
            drawn: how many pictures are drawn at each measured step.
        """
        side = self.person.photos.shape[-1]
        course = min(drawn, COURSE_PICTURES) * len(self.eval_steps)
        return drawn * picture_size(side**2) + course * picture_size(min(side, COURSE_SIDE) ** 2)

    def row(self, measured: CellMeasurements, *, seconds: float, error: str | None) -> AttackRow:
        """The cell's row of the results.

        Args:
            measured: what was measured in the cell.
            seconds: time that the cell took.
            error: why the attack failed; None if it did not.
        """
        return AttackRow(
            attack=self.attack.name,
            spec=self.entry.spec,
            params=self.attack.params(),
            assumes=assumed(self.attack),
            white_box=self.entry.white_box,
            required=self.entry.required,
            long=self.entry.long,
            model=self.model,
            role=self.role,
            subject=self.person.id,
            seed=self.seed,
            nominal_step=self.nominal_step,
            horizon=self.attack.max_train_steps,
            identity={} if measured.nominal is None else measured.nominal.identity,
            quality=measured.quality,
            scores=measured.scores,
            curve=measured.curve,
            seconds=seconds,
            status="ok" if error is None else "failed",
            error=error,
            unreliable=[],
            steps_to_match=None,
            samples_per_step=samples_per_step(self.attack.params()),
            preparing_samples=self.attack.preparing_samples,
            train_seconds=round(max(0.0, seconds - measured.seconds), 3),
        )


def make_cell(
    plan: AuditPlan, entry: Entry, model: str, person: Person, role: PersonRole, seed: int, common: Mapping[str, Any]
) -> Cell:
    """Make the cell of one attack on one model with the photos of one person.

    Args:
        common: facts for its key, `AuditPlan.common_facts` and a hash of the photos.
    """
    attack = plan.factory.make(entry.spec, seed=seed)
    nominal_step, nominal_of_plan = attack.max_train_steps, plan.factory.nominal_step
    pace = nominal_step / nominal_of_plan
    if entry.long and model == "hardened" and role == "protected":
        attack = lengthened(attack, plan.options.max_train_steps / nominal_of_plan)
    wanted = {0, nominal_step, attack.max_train_steps, *(round(pace * step) for step in plan.options.measured_steps)}
    eval_steps = frozenset(step for step in wanted if step <= attack.max_train_steps)
    facts = {
        **common,
        "spec": entry.spec,
        "params": attack.params(),
        "arm": model,
        "model": plan.facts_of(model),
        "needs": {name: plan.facts_of(name) for name in attack.needs},
        "code": code_hash(entry.spec),
        "role": role,
        "entry": [entry.required, entry.long, entry.white_box],
        "seed": seed,
        "person": person.id,
        "steps": [nominal_step, sorted(eval_steps)],
    }
    if isinstance(attack, Untrained) and attack.zero_shot is None:
        facts["adapter"] = plan.adapter_hash
    if isinstance(attack, Untrained) and (edits := plan.edits.get(person.id)):
        facts["edits"] = [[edit.prompt, edit.source] for edit in edits]
    if (column := caption_column(attack)) is not None:
        facts["captions"] = list(person.captions[column])
    return Cell(
        entry=entry,
        attack=attack,
        model=model,
        person=person,
        role=role,
        seed=seed,
        nominal_step=nominal_step,
        eval_steps=eval_steps,
        key=key_of(facts),
    )


@dataclass
class CellMeasurements:
    """What was measured in a cell so far. The curve grows at every measured step.

    Attributes:
        curve: as in `AttackRow`.
        nominal: the curve's point at the nominal step; None before this step. The fields below are then empty.
        quality, scores: as in `AttackRow`.
        pictures: {name: [N, 3, H, W] in [0, 1]}: "course", a few small pictures of every measured step, step by step;
            and pictures of the nominal step.
        seconds: time that drawing and judging took.
    """

    curve: list[CurvePoint] = field(default_factory=list)
    nominal: CurvePoint | None = None
    quality: dict[str, float | None] = field(default_factory=dict)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def add_to_course(self, images: Tensor) -> None:
        """Keep the first pictures of a measured step. Their noise is the same at every step and on every model."""
        kept = at_most(images[:COURSE_PICTURES], COURSE_SIDE)
        self.pictures["course"] = torch.cat([self.pictures.get("course", kept[:0]), kept])
