"""The whole audit of the models: attack them, measure, and judge."""

from __future__ import annotations

from functools import partial

from apdm.audit.cells.class_pictures import (
    AGAIN,
    class_keys,
    class_pictures,
    draw_class_pictures,
    measure_strangers,
    measure_utility,
    warn_of_few_faces,
    warn_of_few_strangers,
)
from apdm.audit.cells.guidance import sweep_guidance, sweep_keys
from apdm.audit.cells.matrix import Matrix
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.results.budgets import budget_table
from apdm.audit.results.common import SCHEMA
from apdm.audit.results.models import HeadlineCost, Measurements, Results
from apdm.audit.results.rows import comparison, other_people, with_row_figures
from apdm.audit.results.store import CellStore, KeptPictures
from apdm.audit.search import run_search
from apdm.audit.verdict import judge, judge_attacks, worst_attack
from apdm.core.pictures import to_unit
from apdm.core.versions import package_versions
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.families import Posterior


def attack_and_judge(
    plan: AuditPlan,
    class_images: Posterior,
    *,
    store: CellStore,
    trials: CellStore | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    afterwards: int = 0,
) -> tuple[Results, KeptPictures] | None:
    """Attack all models with the photos of all people and with all seeds, and judge the result.

    Hardening should prevent the likeness that an attack reaches on the base after the nominal steps. So every attack
    runs for the nominal steps, with one exception: if the person is protected and the entry is `long`, the hardened
    model is attacked for `max_train_steps`. This can show a cost factor of up to max_train_steps / nominal steps.
    If an attack fails, its row says so and the audit goes on.

    Args:
        plan: what is attacked, by what, and who judges.
        class_images: latents of the attacker's class pictures, for prior preservation.
        trials: where finished trials of an attacker's search are kept and found; None without a search.
        afterwards: bytes of the pictures of attacks that follow on these, for which the disk must have room too.

    Returns:
        The main process returns the results and the pictures, {name: [N, 3, H, W] in [0, 1]}. Their names are in
        `apdm.audit.results.picture_names`; the first attack's are "attack/...". Those of "course/..." are at most 256
        pixels wide, as [pictures, steps, 3, H, W]. Picture i of all models and steps starts from the same noise. The
        other processes return None.

    Raises:
        UserError: likeness by chance cannot be measured, see `measure_strangers`.
        Interrupted: the user stopped the audit. Finished attacks stay in the store.
    """
    judges, subjects = plan.judges, plan.subjects
    entries, left_out = plan.available()
    matrix, classes, sweeps = Matrix.of(plan, entries), class_keys(plan), sweep_keys(plan)
    if processes.is_main:
        store.tidy({*(cell.key for cell in matrix.cells), *classes.values(), *sweeps.values()})
    processes.wait()
    draw_class_pictures(plan, classes, store, processes)
    class_features = {name: judges.features(class_pictures(key, store)) for name, key in classes.items()}
    runner = CellRunner(plan, class_images, class_features["base"].extracted)
    protected = {person.id: runner.references[person.id].embeddings for person in subjects.protected}
    processes.on_main(lambda: warn_of_few_faces(judges, class_features["base"].detected))
    # Before the attacks, because it may fail.
    strangers, matched = measure_strangers(plan, protected, class_features["base"])
    processes.on_main(lambda: warn_of_few_strangers(strangers))
    guidance = sweep_guidance(plan, sweeps, runner, store, processes)
    done = matrix.run(runner, store, processes, afterwards=afterwards)
    search = None if trials is None else run_search(plan, runner, trials, processes)
    if done is None:
        return None
    rows, pictures = with_row_figures(done[0]), done[1]
    drawn = KeptPictures({name: partial(class_pictures, key, store) for name, key in classes.items()})
    measured = Measurements(
        schema=SCHEMA,
        command=plan.command,
        package=package_versions(),
        seeds=sorted({row.seed for row in rows}),
        models=dict(plan.files),
        subjects=list(protected),
        others=[person.id for person in subjects.others],
        photos=subjects.counts,
        judges=judges.describe(),
        strangers=strangers,
        strangers_matched=matched,
        left_out=left_out,
        attacks=rows,
        utility=measure_utility(plan, drawn, class_features, other_people(rows, judges.names)),
        search=search,
        guidance=guidance,
    )
    return _judged(plan, measured), _class_and_photos(plan, drawn) | pictures


def _judged(plan: AuditPlan, measured: Measurements) -> Results:
    """Add the figures of each attack and the verdict to the measurements."""
    outcomes = judge_attacks(measured, plan.thresholds)
    # If no attack works on the base, the first attack is shown.
    worst = worst_attack(outcomes) or outcomes[0]
    rows = [row for row in measured.attacks if row.spec == worst.spec]
    return Results(
        **vars(measured),
        by_attack=outcomes,
        comparison=comparison(rows, measured.encoders),
        cost_factor=HeadlineCost(**vars(worst.cost_factor), spec=worst.spec),  # of pairs whose attack works on the base
        thresholds=plan.thresholds,
        verdict=judge(measured, outcomes, plan.thresholds),
        prompts=plan.prompts,
        kind="models",
        budgets=budget_table(measured.attacks, measured.encoders, plan.budgets, measured.search),
    )


def _class_and_photos(plan: AuditPlan, drawn: KeptPictures) -> KeptPictures:
    """Class pictures that start from the same noise, and with `show_photos` the protected people's photos."""
    shown = {"base": AGAIN} | {name: name for name in plan.attacked if name != "base"}
    pictures = {f"class/{model}": partial(drawn.__getitem__, name) for model, name in shown.items()}
    if plan.options.show_photos:
        pictures |= {f"photos/{person.id}": partial(to_unit, person.photos) for person in plan.subjects.protected}
    return KeptPictures(pictures)
