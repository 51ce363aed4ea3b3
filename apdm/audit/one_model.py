"""Attacks on one model alone: the audit's cells of a base, without anything to compare them with, and no verdict."""

from __future__ import annotations

from collections.abc import Callable

from apdm.audit.cells.cell import Cell
from apdm.audit.cells.class_pictures import (
    class_keys,
    class_pictures,
    draw_class_pictures,
    measure_strangers,
    warn_of_few_faces,
)
from apdm.audit.cells.matrix import Matrix
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.results.common import SCHEMA
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.store import CellStore, KeptPictures
from apdm.core.errors import UserError
from apdm.core.files import delete
from apdm.core.logging import get_logger
from apdm.core.versions import package_versions
from apdm.distributed.processes import ProcessGroup
from apdm.families import Family, Posterior
from apdm.metrics.judges import Features
from apdm.metrics.utility import StrangersLikeness

logger = get_logger(__name__)


def attack_one_model(
    plan: AuditPlan,
    class_images: Posterior,
    drawn: Features,
    *,
    store: CellStore,
    processes: ProcessGroup,
    keep: Callable[[Cell, Family], None] | None,
    again: Callable[[Cell], bool],
) -> tuple[AttackResults, KeptPictures] | None:
    """Run the attacks of a plan on its only model.

    Args:
        plan: the model, under the name "base"; the people, the attacks and the judges.
        class_images: latents of the attacker's class pictures, for prior preservation.
        drawn: what the judges read from these pictures. Their faces are the strangers if there are no photos of some.
        keep: called with every attack that succeeded and its model; None keeps no model.
        again: whether a finished attack is run again, because its model is missing.

    Returns:
        The main process returns the results, and the pictures by the names that `attack_and_judge` gives them. The
        other processes return None.

    Raises:
        Interrupted: the user stopped the attack. Finished attacks stay in the store.
    """
    matrix = Matrix.of(plan, plan.entries)
    processes.on_main(lambda: warn_of_few_faces(plan.judges, drawn.detected))
    # Class pictures are compared with the attacker's by the features of a network. Without one they are not needed.
    keys = {"base": class_keys(plan)["base"]} if plan.judges.extractor is not None else {}
    if processes.is_main:
        without_model = [cell.key for cell in matrix.cells if again(cell)]
        for key in without_model:
            delete(store.folder / key)
        store.tidy({*keys.values(), *(cell.key for cell in matrix.cells)} - {*without_model})
    processes.wait()
    draw_class_pictures(plan, keys, store, processes)
    features = plan.judges.features(class_pictures(keys["base"], store)).extracted if keys else None
    runner = CellRunner(plan, class_images, features, keep=keep)
    done = matrix.run(runner, store, processes)
    if done is None:
        return None
    rows, shown = done
    results = AttackResults(
        schema=SCHEMA,
        kind="attack",
        command=plan.command,
        package=package_versions(),
        model=plan.files["base"],
        subjects=[person.id for person in plan.subjects.protected],
        photos=plan.subjects.counts,
        prompts=plan.prompts,
        judges=plan.judges.describe(),
        strangers=_strangers(plan, runner, drawn),
        attacks=rows,
    )
    return results, shown


def _strangers(plan: AuditPlan, runner: CellRunner, drawn: Features) -> dict[str, StrangersLikeness] | None:
    known = {person.id: runner.references[person.id].embeddings for person in plan.subjects.protected}
    try:
        return measure_strangers(plan, known, drawn)[0]
    except UserError:
        logger.warning(
            "likeness by chance is not known: the model draws no face for the class prompt; strangers_data_dir names "
            "photos of strangers"
        )
        return None
