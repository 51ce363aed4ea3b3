"""What `apdm reproduce --plan` prints: rows, what has to be drawn and computed, and what is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.config import HardenConfig, JobConfig, PerturbConfig, ReproduceConfig
from apdm.core.disk import amount, free_space, picture_size
from apdm.core.terminal import count
from apdm.families import load_family
from apdm.image_layer.protections import make_protection
from apdm.jobs.attack import trains
from apdm.jobs.planning import resources
from apdm.jobs.planning.audit_work import attack_passes
from apdm.jobs.reproduce import Job, load_job
from apdm.jobs.reproducing.checks import attack_of, job_of
from apdm.jobs.reproducing.recipes import Recipe, RecipeRow, merged, missing_for_column
from apdm.jobs.reproducing.subjects import Subject, read_subjects

KNOWN = {"sd15": 0.80e12}  # operations of a forward pass at 512 pixels (python -m benchmarks.cost)
HARDENED, CHANGED, ATTACKS, DRAWN = "for hardening", "for photos at most", "for attacks", "for pictures"
USUAL_PHOTOS = 4  # of a subject that is not known yet


@dataclass
class Sums:
    """What a table takes.

    Attributes:
        passes: {part: forward passes of the denoiser, in which a backward pass counts as two}.
        pictures: {kind: number}.
        models: how many hardened models are kept.
    """

    passes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pictures: Counter[str] = field(default_factory=Counter)
    models: int = 0

    def draw(self, kind: str, number: int, steps: int, guidance: float) -> None:
        """Add pictures."""
        self.pictures[kind] += number
        self.passes[DRAWN] += resources.drawing_passes(number, steps, guidance)


@dataclass(frozen=True)
class Group:
    """Subjects of one kind: how many, and how many photos of each are protected."""

    kind: str | None
    number: int
    photos: int = USUAL_PHOTOS


def plan_rows(config: ReproduceConfig) -> dict[str, str | list[str]]:
    """Return what a table will take, for the terminal.

    Raises:
        UserError: the recipe, the models or the photos cannot be used.
    """
    job = load_job(config)
    recipe, wanted = job.recipe, config.people or job.recipe.people
    subjects: list[Subject] = []
    if config.data is not None:
        subjects = read_subjects(config.data, recipe, wanted)
        job = job.with_subjects(subjects)
    groups = groups_of(recipe, subjects, wanted)
    sums = sums_of(job, groups, config.seeds)
    known = bool(subjects or wanted or recipe.is_miniature)
    each = "" if known else "; figures below are for one of each, as no photos are given"
    rows: dict[str, str | list[str]] = {
        "table": recipe.title,
        "rows": [f"{name} ({row.title}): {_state(job, name)}" for name, row in job.rows.items()],
        "subjects": f"{_named(groups) if known else 'all in --data'}, {count(config.seeds, 'seed')} of each "
        f"attack{each}",
        "pictures": ", ".join(f"{number} {kind}" for kind, number in sums.pictures.items() if number) or "none",
        "work": _work(job, sums),
        "disk": _disk(config, job, sums),
    }
    lacking = {name: missing_for_column(recipe, column, job.models) for name, column in recipe.columns.items()}
    missing = list(job.missing.values())
    missing += [text.removeprefix("needs ") for text in lacking.values() if text and text.startswith("needs ")]
    if missing:
        rows["missing"] = list(dict.fromkeys(missing))
    if not recipe.is_miniature and config.data is None:
        rows["photos missing"] = "name the folder with --data"
    return rows


def _state(job: Job, name: str) -> str:
    return f"needs {job.missing[name]}" if name in job.missing else "runs"


def groups_of(recipe: Recipe, subjects: Sequence[Subject], wanted: int | None) -> list[Group]:
    """The subjects by kind; of those that are not known yet, as many as are wanted, or one."""
    kinds = list(dict.fromkeys([*recipe.protected_kinds, *recipe.attacked_kinds]))
    if not subjects:
        return [Group(kind, 1 if kind is not None and kind == recipe.protects else wanted or 1) for kind in kinds]
    found = [[one for one in subjects if one.kind == kind] for kind in kinds]
    return [Group(kind, len(of), len(of[0].photos)) for kind, of in zip(kinds, found, strict=True) if of]


def _named(groups: Sequence[Group]) -> str:
    return ", ".join(f"{group.number} {group.kind}" if group.kind else str(group.number) for group in groups)


def sums_of(job: Job, groups: Sequence[Group], seeds: int) -> Sums:
    """Count what the rows take, also those whose models are not named yet. What rows share is counted once."""
    sums, seen, recipe = Sums(), set(), job.recipe
    attacked = [group for group in groups if group.kind in recipe.attacked_kinds]
    protected = [group for group in groups if group.kind in recipe.protected_kinds]
    for row in job.rows.values():
        if recipe.protection(row).needs is not None:
            continue
        for group in protected:
            if row.protect is not None and (row.protect, group.kind) not in seen:
                _add_protection(sums, job, row, group)
                seen.add((row.protect, group.kind))
        for group in attacked if recipe.attacks else []:
            _add_attack(sums, job, row, group, seeds)
        if (captions := recipe.drawn_captions) is not None:
            hardened = recipe.protection(row).harden is not None and recipe.protects is None
            number = captions.number * (sum(group.number for group in attacked) if hardened else 1)
            sums.draw("for captions", number, captions.num_inference_steps, captions.guidance_scale)
    return sums


def _add_protection(sums: Sums, job: Job, row: RecipeRow, group: Group) -> None:
    recipe, protection = job.recipe.for_kind(group.kind), job.recipe.protection(row)
    people = group.number
    if protection.harden is not None:
        harden = job_of(HardenConfig, recipe, merged(recipe.harden, protection.harden))
        sums.passes[HARDENED] += people * resources.training_passes(harden)
        sums.models += people
        _add_class_pictures(sums, harden, people)
        if harden.pairs == "drawn":
            number = people * group.photos
            sums.draw("partners", number, harden.num_inference_steps, harden.guidance_scale)
    if protection.perturb is not None:
        perturb = job_of(PerturbConfig, recipe, merged(recipe.perturb, protection.perturb))
        made = make_protection(perturb.image_layer)
        sums.passes[CHANGED] += people * made.passes(group.photos)
        if made.needs_class_pictures:
            _add_class_pictures(sums, perturb, people)


def _add_class_pictures(sums: Sums, config: JobConfig, people: int) -> None:
    sums.draw("class pictures", people * config.num_class_images, config.num_inference_steps, config.guidance_scale)


def _add_attack(sums: Sums, job: Job, row: RecipeRow, group: Group, seeds: int) -> None:
    recipe, protection = job.recipe, job.recipe.protection(row)
    attack = attack_of(recipe.for_kind(group.kind), row)
    options, times = attack.audit, group.number * seeds
    # Each hardened model draws its own class pictures, and each other model draws them once.
    own = times if protection.harden is not None and recipe.protects is None else 0
    if row.protect is None or (protection.harden is not None and recipe.protects is not None):
        own = seeds
    if recipe.is_miniature or options.judge:  # whose features compare the attacked model's class pictures with these
        own += times
    if trains(attack):
        factory = AttackFactory(options, attack.instance_prompt, attack.class_prompt)
        made = [factory.make(spec, seed=0) for spec in attack.attack]
        sums.passes[ATTACKS] += times * attack_passes(made, group.photos)
    sums.draw("class pictures", own * options.num_class_images, attack.num_inference_steps, attack.guidance_scale)
    measured = len({0, *options.measured_steps}) if trains(attack) else 1
    number = times * measured * len(attack.prompts) * options.num_images
    sums.draw("pictures of attacked models", number, attack.num_inference_steps, attack.guidance_scale)


def _work(job: Job, sums: Sums) -> str:
    """The operations and the time, if the model is here to be counted; the forward passes otherwise."""
    passes = {name: number for name, number in sums.passes.items() if number}
    place = job.places.get(job.recipe.model)
    if place is None or not Path(place).exists():
        listed = ", ".join(f"{number:,.0f} {name}" for name, number in passes.items())
        operations = KNOWN.get(job.recipe.model, 0.0) * sum(passes.values())
        counted = f": {resources.time_for(operations)}" if operations else ""
        return f"forward passes of the denoiser: {listed or 'none'}{counted}"
    base = load_family(place)
    cost = resources.cost_of_pass(base, job.recipe.instance_prompt, job.recipe.resolution, half=False)
    return resources.work(cost, passes)


def _disk(config: ReproduceConfig, job: Job, sums: Sums) -> str:
    """How much disk hardened models and pictures take."""
    place = Path(job.places.get(job.recipe.model, "nowhere"))
    size = sum(file.stat().st_size for file in sorted(place.rglob("*")) if file.is_file()) if place.is_dir() else 0
    pictures = sum(sums.pictures.values()) * picture_size(job.recipe.resolution**2)
    models = f"{count(sums.models, 'hardened model')} of {amount(size) if size else 'unknown size'}"
    free = free_space(Path(config.output_dir or "."))
    return f"{models}, pictures {amount(pictures)}; {amount(size * sums.models + pictures)} in all, {amount(free)} free"
