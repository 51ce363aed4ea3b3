"""What decides that a finished attack is still that of the model: its weights, and how its parts are configured."""

import json
import shutil
from pathlib import Path

from tiny_audit import CONFIG, ConvJudge, person, photos

from apdm.audit.cells.class_pictures import class_keys
from apdm.audit.cells.guidance import sweep_keys
from apdm.audit.cells.matrix import Matrix
from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.inputs.plan import AuditPlan
from apdm.families import Family, load_family
from apdm.metrics.judges import Judges


def keys_of(base: Family, hardened: Family) -> dict[str, set[str]]:
    """{model: keys of all that is kept of it in the store}."""
    plan = AuditPlan(
        options=CONFIG,
        instance_prompt="a photo of sks person",
        class_prompt="a photo of person",
        models={"base": base, "hardened": hardened},
        judges=Judges([ConvJudge("one", -1.0, 1)], ConvJudge("face", -1.0, 3), ConvJudge("features", 0.0, 4)),
        subjects=AuditSubjects([person("s01", 1)], [], photos(4, 60)),
        guidance=True,
    )
    found = {
        name: {cell.key for cell in Matrix.of(plan, plan.entries).cells if cell.model == name} for name in plan.models
    }
    for (name, _), key in sweep_keys(plan).items():
        found[name].add(key)
    for name, key in class_keys(plan).items():
        found["hardened" if name == "hardened" else "base"].add(key)
    return found


def test_a_model_with_the_same_weights_and_other_noise_levels_is_attacked_again(tiny_pipeline: Path, tmp_path: Path):
    family = load_family(tiny_pipeline)
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    sampler = other / "scheduler/scheduler_config.json"
    sampler.write_text(json.dumps(json.loads(sampler.read_text()) | {"beta_end": 0.02}))
    keys, changed = keys_of(family, family), keys_of(family, load_family(other))
    assert keys == keys_of(load_family(tiny_pipeline), load_family(tiny_pipeline))
    assert changed["base"] == keys["base"], "which the attacks on the base have nothing to do with"
    assert changed["hardened"].isdisjoint(keys["hardened"])
    assert keys_of(load_family(other), family)["base"].isdisjoint(keys["base"])
