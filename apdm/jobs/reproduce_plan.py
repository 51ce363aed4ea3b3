"""What `apdm reproduce --plan` prints: rows, what has to be drawn and computed, and what is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from apdm.audit.models import load_models
from apdm.config import HardenConfig, JobConfig, PerturbConfig, ReproduceConfig
from apdm.core.disk import amount, free_space, picture_size
from apdm.core.terminal import count
from apdm.image_layer.protections import make_protection
from apdm.jobs import resources
from apdm.jobs.memory_count import ATTACK_FORWARDS
from apdm.jobs.recipes import MODELS, RecipeRow, filled_in, merged
from apdm.jobs.reproduce import Job, attack_of, load_job
from apdm.jobs.reproduce_steps import job_config, read_subjects

NAMES = {name: name for name in [*MODELS, "people"]}  # stand for places that are not known yet
KNOWN = {"sd15": 0.80e12}  # operations of a forward pass at 512 pixels (python -m benchmarks.cost)
HARDENED, ATTACKS, DRAWN = "for hardening", "for attacks", "for pictures"


@dataclass
class Sums:
    """What a table takes.

    Attributes:
        passes: {part: forward passes of the denoiser, in which a backward pass counts as two}.
        pictures: {kind: number}.
        steps: steps of photo protections, which are not counted in passes.
        models: how many hardened models are kept.
    """

    passes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pictures: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    models: int = 0

    def draw(self, kind: str, number: int, steps: int, guidance: float) -> None:
        """Add pictures."""
        self.pictures[kind] += number
        self.passes[DRAWN] += number * steps * (2 if guidance > 1 else 1)


def plan_rows(config: ReproduceConfig) -> dict[str, str | list[str]]:
    """Return what a table will take, for the terminal.

    Raises:
        UserError: the recipe, the models or the photos cannot be used.
    """
    job = load_job(config)
    recipe, people = job.recipe, _people(config, job)
    sums = sums_of(job, people or 1, config.seeds)
    missing = list(dict.fromkeys(job.missing.values()))
    each = "" if people else "; figures below are for one subject, as no photos are given"
    rows: dict[str, str | list[str]] = {
        "table": recipe.title,
        "rows": [f"{name} ({row.title}): {_state(job, name)}" for name, row in job.rows.items()],
        "subjects": f"{people or 'all in --data'}, {count(config.seeds, 'seed')} of each attack{each}",
        "pictures": ", ".join(f"{number} {kind}" for kind, number in sums.pictures.items()) or "none",
        "work": _work(job, sums),
        "disk": _disk(config, job, sums),
    }
    if sums.steps:
        rows["photos"] = f"{count(sums.steps, 'step')} of protecting photos, which are not counted in work"
    if missing:
        rows["missing"] = missing
    if not recipe.is_miniature and config.data is None:
        rows["photos missing"] = "name the folder with --data"
    return rows


def _state(job: Job, name: str) -> str:
    return f"needs {job.missing[name]}" if name in job.missing else "runs"


def _people(config: ReproduceConfig, job: Job) -> int | None:
    if job.recipe.is_miniature:
        return config.people or job.recipe.people or 1
    if config.data is None:
        return config.people or job.recipe.people
    return len(read_subjects(config.data, drawn=False, count=config.people or job.recipe.people))


def sums_of(job: Job, people: int, seeds: int) -> Sums:
    """Count what the rows take, also those whose models are not named yet. What rows share is counted once."""
    sums, seen = Sums(), set()
    for row in job.rows.values():
        if job.recipe.protection(row).needs is not None:
            continue
        if row.protect is not None and row.protect not in seen:
            _add_protection(sums, job, row, people)
        _add_attack(sums, job, row, people, seeds)
        seen.add(row.protect)
    return sums


def _add_protection(sums: Sums, job: Job, row: RecipeRow, people: int) -> None:
    recipe, protection = job.recipe, job.recipe.protection(row)
    here, places = Path("table"), {**NAMES, **job.places}
    model = {"pretrained_model_name_or_path": "model"}
    if protection.harden is not None:
        options = filled_in(merged(recipe.harden, protection.harden), places)
        harden = job_config(HardenConfig, recipe, options, here, here, model)
        sums.passes[HARDENED] += people * resources.training_passes(harden)
        sums.models += people
        _add_class_pictures(sums, harden, people)
    if protection.perturb is not None:
        options = filled_in(merged(recipe.perturb, protection.perturb), places)
        perturb = job_config(PerturbConfig, recipe, options, here, here, model)
        made = make_protection(perturb.image_layer)
        sums.steps += people * made.total_steps
        if made.needs_class_pictures:
            _add_class_pictures(sums, perturb, people)


def _add_class_pictures(sums: Sums, config: JobConfig, people: int) -> None:
    sums.draw("class pictures", people * config.num_class_images, config.num_inference_steps, config.guidance_scale)


def _add_attack(sums: Sums, job: Job, row: RecipeRow, people: int, seeds: int) -> None:
    attack = attack_of(job.recipe, row, {**NAMES, **job.places})
    options, times = attack.audit, people * seeds
    own = times if job.recipe.protection(row).harden is not None else 0  # each hardened model draws its own class
    if row.protect is None:
        own = seeds
    sums.passes[ATTACKS] += times * options.max_train_steps * options.train_batch_size * ATTACK_FORWARDS
    sums.draw("class pictures", own * options.num_class_images, attack.num_inference_steps, attack.guidance_scale)
    measured = len({0, *options.measured_steps})
    number = times * measured * len(attack.prompts) * options.num_images
    sums.draw("pictures of attacked models", number, attack.num_inference_steps, attack.guidance_scale)


def _work(job: Job, sums: Sums) -> str:
    """The operations and the hours, if the model is here to be counted; the forward passes otherwise."""
    passes = {name: number for name, number in sums.passes.items() if number}
    place = job.places.get(job.recipe.model)
    if place is None or not Path(place).exists():
        listed = ", ".join(f"{number:,.0f} {name}" for name, number in passes.items())
        hours = KNOWN.get(job.recipe.model, 0.0) * sum(passes.values()) / resources.SPEED / 3600
        counted = f": {hours:.1f} hours at {resources.SPEED / 1e12:.0f} TFLOP/s" if hours else ""
        return f"forward passes of the denoiser: {listed or 'none'}{counted}"
    base = load_models({"base": place})["base"]
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
