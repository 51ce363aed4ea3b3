"""The work of an audit, before it begins: forward passes of its attacks, its pictures and its purifiers; and its disk.

A backward pass counts as two forward passes. Passes of the VAE and of text encoders are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apdm.attacks import Attack
from apdm.attacks.drawing import Drawing as DrawnWithOptions
from apdm.attacks.purify import passes_per_photo
from apdm.attacks.registry import is_zero_shot, make_purifier
from apdm.attacks.staged import Staged, stages
from apdm.audit.cells.cell import Cell
from apdm.audit.cells.guidance import SCALES
from apdm.audit.cells.matrix import Matrix
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.photo_attack_specs import ADAPTER_ATTACK, PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan, Drawing
from apdm.audit.inputs.search_space import SearchSpace
from apdm.audit.inputs.suites import Entry
from apdm.audit.inputs.untrained import Untrained
from apdm.audit.results.budgets import samples_per_step
from apdm.audit.results.rows import COMPARED
from apdm.audit.results.store import finished_cells
from apdm.core.disk import picture_size
from apdm.data.drawn_pictures import count_drawn
from apdm.distributed.recompute import passes_of_training
from apdm.export.layout import ATTACKER_CLASS_IMAGES, CELLS, PHOTO_CELLS
from apdm.jobs.planning.resources import drawing_passes


@dataclass(frozen=True, kw_only=True)
class AuditWork:
    """What an audit does.

    Attributes:
        plan: the plan of the audit.
        cells: the attacks on models.
        class_sets: how many sets of class pictures are drawn; the attacker's is one of them.
        specs: the attacks on protected photos; None for no such attacks.
        photos: {person: number of protected photos}, for these attacks.
    """

    plan: AuditPlan
    cells: Sequence[Cell]
    class_sets: int
    specs: PhotoAttackSpecs | None = None
    photos: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of_models(
        plan: AuditPlan, entries: Sequence[Entry], specs: PhotoAttackSpecs | None, photos: Mapping[str, int]
    ) -> AuditWork:
        """The work of an audit of models. The attacker too has class pictures, and the base draws a second set."""
        class_sets, cells = len(plan.attacked) + 2, Matrix.of(plan, entries).cells
        return AuditWork(plan=plan, cells=cells, class_sets=class_sets, specs=specs, photos=photos)

    @property
    def attacks(self) -> list[Attack]:
        """All attacks that train, each as often as it runs."""
        attacks = [cell.attack for cell in self.cells]
        if self.specs is not None:
            people, seeds = len(self.photos), self.plan.repeats
            attacks += attacks_with_photos(self.specs, self.plan.factory, people=people, seeds=seeds)
        return attacks

    @property
    def passes(self) -> dict[str, float]:
        """{part of the audit: number of forward passes}."""
        plan, purifying = self.plan, 0.0
        drawing = cell_drawing(self.cells, plan) + _drawing(plan, self.class_sets * plan.options.num_class_images)
        if self.specs is not None:
            drawing += photo_drawing(self.specs, plan, people=len(self.photos))
            purifying = purifier_passes(self.specs, photos=sum(self.photos.values()), seeds=plan.repeats)
        return {
            "for attacks": attack_passes(self.attacks, plan.subjects.mean_photos),
            "for the pictures of the audit": drawing + guidance_passes(plan),
            "for purifiers of protected photos": purifying,
            "for the search": search_passes(plan),
        }

    def pictures_size(self, output: Path) -> int:
        """Return an upper bound of the bytes of the pictures that the audit keeps, besides those that it has.

        They are kept twice: with each finished attack, and as sheets for the report. Attacks in the folder `output`
        that are finished are not counted, but their sheets are drawn again.
        """
        plan, drawing = self.plan, self.plan.drawing
        one = picture_size(plan.subjects.protected[0].photos.shape[-1] ** 2)
        on_models = [cell.pictures_size(drawing.number) for cell in self.cells]
        on_models += (len(plan.attacked) + 1) * [plan.options.num_class_images * one]
        on_photos = []
        if self.specs is not None:
            runs = len(self.photos) * plan.repeats * (2 + len(self.specs.purifiers))
            on_photos = runs * [n * drawing.num_images * one for n in _prompts_on_photos(self.specs, drawing)]
        stores = ((CELLS, on_models), (PHOTO_CELLS, on_photos))
        missing = sum(sum(sorted(sizes)[len(finished_cells(output / name)) :]) for name, sizes in stores)
        number = plan.options.num_class_images
        attackers = number - count_drawn(output / ATTACKER_CLASS_IMAGES, number)
        return missing + sum(on_models) + sum(on_photos) + attackers * one


def cell_drawing(cells: Iterable[Cell], plan: AuditPlan) -> float:
    """Forward passes of what the attacked models draw. Pictures before an attack are drawn once per model and seed."""
    passes, shared = 0.0, set()
    for cell in cells:
        points = len(cell.eval_steps)
        if 0 in cell.eval_steps and not isinstance(cell.attack, Staged | Untrained):
            points -= 1
            shared.add((cell.model, cell.seed, *cell.prompts(plan.drawing)))
        passes += _drawing(plan, points * plan.drawing.number, **_own_way(cell.attack))
    return passes + _drawing(plan, len(shared) * plan.drawing.number)


def photo_drawing(specs: PhotoAttackSpecs, plan: AuditPlan, *, people: int) -> float:
    """Forward passes of the pictures that attacks on clean, protected and purified photos end with."""
    runs = people * plan.repeats * (2 + len(specs.purifiers)) * plan.drawing.num_images
    prompts = zip(specs.names, _prompts_on_photos(specs, plan.drawing), strict=True)
    made = {spec: plan.factory.make(spec, seed=0) for spec in specs.names if not is_zero_shot(spec)}
    return sum(_drawing(plan, runs * n, **(_own_way(made[spec]) if spec in made else {})) for spec, n in prompts)


def _own_way(attack: Attack) -> dict[str, float]:
    """The sampling steps and the guidance scale of an attack that draws otherwise than the audit."""
    given: dict[str, float] = {}
    for stage in reversed(stages(attack)):  # the outermost has the last word
        if isinstance(stage, DrawnWithOptions):
            options = {"steps": stage.num_inference_steps, "guidance_scale": stage.guidance_scale}
            given |= {name: value for name, value in options.items() if value is not None}
    return given


def _prompts_on_photos(specs: PhotoAttackSpecs, drawing: Drawing) -> list[int]:
    """How many prompts each attack on photos draws, at most."""
    edits = [is_zero_shot(spec) and spec != ADAPTER_ATTACK for spec in specs.names]
    return [1 if each and specs.edit_prompt is not None else len(drawing.prompts) for each in edits]


def attack_passes(attacks: Iterable[Attack], photos: float) -> float:
    """Forward passes of attacks, each with its own steps and batches, in which a backward pass counts as two.

    Args:
        attacks: the attacks, each as often as it runs.
        photos: how many photos a person has; the mean of all people.
    """
    return sum(
        _preparing_passes(attack, photos)
        + attack.max_train_steps * (samples_per_step(attack.params()) or 1) * _step_passes(attack)
        for attack in attacks
    )


def _preparing_passes(attack: Attack, photos: float) -> float:
    """Forward passes of all stages before the innermost attack."""
    return sum(stage.own_passes(photos) for stage in stages(attack) if isinstance(stage, Staged))


def _step_passes(attack: Attack) -> float:
    return getattr(stages(attack)[-1], "step_passes", passes_of_training())


def search_passes(plan: AuditPlan) -> float:
    """Forward passes of an attacker's search on base and hardened model, in which a backward pass counts as two.

    Every trial trains, and draws pictures at its measured steps. Those before the first step are the audit's own.
    """
    if plan.search is None:
        return 0
    nominal = plan.factory.nominal_step
    measured = {nominal, *(step for step in plan.options.measured_steps if 0 < step < nominal)}
    samples = SearchSpace(plan.factory, plan.search.samples).samples
    trials = len(COMPARED) * min(plan.search.people, len(plan.subjects.protected)) * plan.search.trials
    trained = passes_of_training(recomputed=plan.options.gradient_checkpointing)
    return trials * (trained * samples + _drawing(plan, len(measured) * plan.drawing.number))


def guidance_passes(plan: AuditPlan) -> float:
    """Forward passes of the pictures that base and hardened model draw at several guidance scales, if they do."""
    return sum(_drawing(plan, len(COMPARED) * plan.drawing.number, scale) for scale in SCALES) if plan.guidance else 0


def _drawing(
    plan: AuditPlan, pictures: float, guidance_scale: float | None = None, steps: float | None = None
) -> float:
    """Forward passes of drawing pictures; None takes the audit's own guidance scale or sampling steps."""
    scale = plan.drawing.guidance_scale if guidance_scale is None else guidance_scale
    return drawing_passes(pictures, steps or plan.drawing.num_inference_steps, scale, plan.models["base"])


def attacks_with_photos(specs: PhotoAttackSpecs, factory: AttackFactory, *, people: int, seeds: int) -> list[Attack]:
    """The attacks that train on photos: on clean and on protected ones, and on these after each purifier."""
    kinds = 2 + len(specs.purifiers)
    return people * seeds * kinds * [factory.make(spec, seed=0) for spec in specs.names if not is_zero_shot(spec)]


def purifier_passes(specs: PhotoAttackSpecs, *, photos: int, seeds: int) -> float:
    """Forward passes with which purifiers draw the protected photos again, for each attack and seed.

    Args:
        specs: the attacks and the purifiers.
        photos: how many protected photos all people have together.
        seeds: how many seeds there are.
    """
    purifiers = [make_purifier(spec, has_originals=True) for spec in specs.purifiers]
    return seeds * photos * len(specs.names) * sum(map(passes_per_photo, purifiers))
