"""Whether a released model already knows a person: what it draws for the subject's prompts before any attack.

High guidance brings out what a prompt is connected with. A model that hardening taught the person would show it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from apdm.audit.cells.judging import check_finite
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.plan import ATTACK_NOISE, AuditPlan
from apdm.audit.results.rows import COMPARED
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.results.search import GuidanceSweep
from apdm.audit.results.store import CellStore, key_of, tensor_hash
from apdm.distributed.processes import ProcessGroup
from apdm.metrics.judges import Features

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 12.0)


def sweep_keys(plan: AuditPlan) -> dict[tuple[str, str], str]:
    """{(model, person): key of the sweep in the store}; empty if the plan asks for none."""
    if not plan.guidance:
        return {}
    common = plan.common_facts()
    return {
        (model, person.id): key_of(
            {
                **common,
                "guidance": SCALES,
                "arm": [model, *plan.facts_of(model)],
                "who": [person.id, tensor_hash(person.references)],
            }
        )
        for model in COMPARED
        for person in plan.subjects.protected
    }


def sweep_guidance(
    plan: AuditPlan, keys: Mapping[tuple[str, str], str], runner: CellRunner, store: CellStore, processes: ProcessGroup
) -> list[GuidanceSweep]:
    """Draw the subject's prompts at several guidance scales, and compare with each protected person.

    Pictures are drawn once for each model and scale. The processes share the models. Finished sweeps stay in the store.

    Args:
        keys: {(model, person): key in the store} of the sweeps; see `sweep_keys`.
    """
    for model in COMPARED[processes.index :: processes.size]:
        missing = [person for person in plan.subjects.protected if keys and keys[model, person.id] not in store]
        if missing:
            by_scale = {f"{scale:g}": _features(plan, model, scale) for scale in SCALES}
            for person in missing:
                seen = {
                    scale: plan.judges.identity(features, runner.references[person.id].embeddings)
                    for scale, features in by_scale.items()
                }
                sweep = GuidanceSweep(model=model, subject=person.id, identity=seen)
                store.save(keys[model, person.id], to_json(sweep), {})
    processes.wait()
    return [from_json(GuidanceSweep, store.load(key)[0], f"{store.folder.name}/{key}") for key in keys.values()]


def _features(plan: AuditPlan, model: str, scale: float) -> Features:
    drawing = replace(plan.drawing, guidance_scale=scale)
    prompts = [prompt for prompt in drawing.prompts for _ in range(drawing.num_images)]
    photos = plan.subjects.protected[0].photos
    images = drawing.draw(plan.models[model], prompts, plan.seed, ATTACK_NOISE, like=photos)
    check_finite(images)
    return plan.judges.features(images)
