"""The audit: attack base and hardened model side by side, and say what likeness costs the attacker on each.

A matrix of attacks x models x people x seeds (`suites`, `matrix`); in each cell (`cells`) pictures are drawn and judged
at every evaluation step. All draws of a cell come from its seed alone, so the models' cells of one attack, person and
seed are paired. A cell that fails is a row that says so; it never ends the audit. Finished cells are kept (`store`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from apdm.audit.cells import CLASS, CLASS_AGAIN, Attacker, draw
from apdm.audit.matrix import Matrix
from apdm.audit.people import Person
from apdm.audit.rows import add_row_figures, comparison, cost_factors, other_subjects, spec_of
from apdm.audit.store import CellStore, kept, key_of, tensor_hash
from apdm.audit.suites import NOMINAL, AttackFactory, Entry, available
from apdm.audit.verdict import judge, judge_attacks, worst_attack
from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.core.files import write_text
from apdm.core.versions import package_versions
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.families import Family, Posterior
from apdm.metrics.judges import Features, Judges
from apdm.metrics.utility import class_utility, strangers_likeness

__all__ = ["BUILT_IN", "SCHEMA", "Audit", "Person", "audit", "common_facts", "read_results", "write_results"]

SCHEMA = 1
BUILT_IN = (replace(NOMINAL, placebo=False),)  # of the hardening job

Results = dict[str, Any]
Sheets = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is attacked, by what, and who judges.

    config: drawing, thresholds, the nominal attack. models: "base" and "hardened", maybe "placebo" (an arm too),
    "sibling" and "hardened_sibling"; all are only read, attacks train copies. subjects: the protected. others: people
    who must stay learnable. strangers: photos of anybody else, [N, 3, R, R] in [-1, 1], what likeness by chance is;
    without them, the base's own class pictures say it. class_images: the attack's prior, drawn by the base; None only
    where `prior_loss_weight` is 0. consenting: photos of unrelated people, as strangers. seed: of the first repeat.
    nominal_step: length of the nominal attack; default `config.max_train_steps`. paths: {model: {"path", "sha256"}}.
    """

    config: AuditOptions
    models: Mapping[str, Family]
    judges: Judges
    subjects: Sequence[Person]
    others: Sequence[Person] = ()
    strangers: Tensor | None = None
    consenting: Tensor | None = None
    class_images: Posterior | None = None
    entries: Sequence[Entry] = BUILT_IN
    instance_prompt: str
    class_prompt: str
    seed: int = 0
    nominal_step: int | None = None
    paths: Mapping[str, Mapping[str, str]] | None = None
    command: str | None = None

    @property
    def nominal(self) -> int:
        return self.config.max_train_steps if self.nominal_step is None else self.nominal_step

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.config.seeds))

    @property
    def attack_factory(self) -> AttackFactory:
        return AttackFactory(
            options=self.config,
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            nominal_step=self.nominal,
        )

    def sha256(self, model: str) -> str | None:
        """Of a model's weights; None where `paths` does not know it."""
        facts = (self.paths or {}).get(model)
        return facts["sha256"] if facts else None


def audit(
    plan: Audit, *, store: CellStore | None = None, processes: ProcessGroup = SINGLE_PROCESS, show_progress: bool = True
) -> tuple[Results, Sheets] | None:
    """Attack all models on all people with all seeds, and judge.

    The nominal attack, whose likeness on the base is what there is to prevent, takes `plan.nominal` steps. The base,
    and everybody but the protected, are attacked that long; the hardened model on the protected, by attacks that are
    `long`, for `config.max_train_steps`: so cost factors up to max_train_steps / nominal can be shown.

    Args:
        store: where finished cells are kept and found; None keeps nothing.
        ranks: the processes that share the cells; the main one returns, the others give None.
    Returns:
        results.json's content, and pictures [N, 3, H, W] in [0, 1] by name: "class/<model>",
        "attack/<model>/<person>/<seed>" after the nominal attack ("<spec>/<model>/<person>/<seed>" after other specs),
        "attention/..." likewise, and with `config.show_photos` "photos/<person>". Picture i of all models starts from
        equal noise.
    Raises:
        UserError: nobody to protect, two people of one id, no class images for the prior, a nominal step out
            of reach, or no way to know the likeness of strangers.
    """
    _check(plan)
    with kept(store) as cells:
        return _audit(plan, cells, processes, show_progress)


def _audit(
    plan: Audit, store: CellStore, processes: ProcessGroup, show_progress: bool
) -> tuple[Results, Sheets] | None:
    config, judges = plan.config, plan.judges
    entries, left_out = available(plan.entries, plan.models, plan.attack_factory)
    matrix = Matrix.of(plan, entries, common=common_facts(plan))
    if processes.is_main:
        store.tidy({*(cell.key for cell in matrix.cells), *_class_keys(plan).values()})
    processes.wait()
    class_pictures = _class_pictures(plan, store, processes)
    class_looks = {name: judges.features(images) for name, images in class_pictures.items()}
    people = [*plan.subjects, *plan.others]
    references = {person.id: judges.embed(_unit(person.references)) for person in people}
    attacker = Attacker(
        config=config,
        judges=judges,
        models=plan.models,
        references=references,
        reference_features={person.id: judges.whole_features(_unit(person.references)) for person in people},
        class_images=plan.class_images,
        consenting=plan.consenting,
        class_features=class_looks["base"].extracted,
        class_prompt=plan.class_prompt,
    )
    rows_and_pictures = matrix.run(attacker, store, processes, show_progress=show_progress)
    if rows_and_pictures is None:
        return None
    rows, pictures = rows_and_pictures
    protected = {person.id: references[person.id] for person in plan.subjects}
    results: Results = {
        "schema": SCHEMA,
        "command": plan.command,
        "package": package_versions(),
        "seeds": sorted({row["seed"] for row in rows}),
        "models": {name: dict(facts) for name, facts in (plan.paths or {}).items()},
        "subjects": list(protected),
        "others": [person.id for person in plan.others],
        "judges": asdict(judges.describe()),
        "strangers": _strangers(judges, protected, plan.strangers, class_looks["base"]),
        "left_out": [asdict(entry) for entry in left_out],
    }
    add_row_figures(rows)
    results["attacks"] = rows
    results["utility"] = _utility(plan, class_pictures, class_looks) | {
        "other_subjects": other_subjects(rows, judges.names)
    }
    results["by_attack"] = judge_attacks(results, config)
    results |= _headline(plan, results)
    results["thresholds"] = {name: getattr(config, name) for name in THRESHOLDS}
    results["verdict"] = judge(results, config)
    return results, _sheets(plan, class_pictures) | pictures


THRESHOLDS = (
    *("max_match_rate", "max_likeness_over_strangers", "min_cost_factor"),
    *("min_other_ratio", "min_face_rate", "max_fid_ratio", "max_class_drift"),
)


def write_results(results: Mapping[str, Any], path: str | Path) -> None:
    """Write `results` as strict JSON, beside and renamed."""
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def read_results(path: str | Path) -> Results:
    """What `write_results` wrote. Raises UserError for a file that is none, or one of another schema."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; give the results.json of an audit") from None
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this program reads {SCHEMA}: audit again with this version")
    return dict(results)


# -- the models before any attack ----------------------------------------------------------------------------


def _class_pictures(plan: Audit, store: CellStore, processes: ProcessGroup) -> Sheets:
    """Class pictures of every arm, kept in the store: the base's with two sets of seeds, the others' with the second.

    So "hardened" stands to "base" as "base_again" does, and two equal models have an FID ratio of exactly 1.
    """
    config, keys = plan.config, _class_keys(plan)
    for name, key in list(keys.items())[processes.index :: processes.size]:
        if key not in store:
            height, width = plan.subjects[0].photos.shape[-2:]
            images = draw(
                config,
                plan.models[name.removesuffix("_again")],
                [plan.class_prompt] * config.num_class_images,
                plan.seed,
                CLASS if name == "base" else CLASS_AGAIN,
                height=height,
                width=width,
            )
            store.save(key, {"finite": bool(images.isfinite().all())}, {"class": images})
    processes.wait()
    sheets = {}
    for name, key in keys.items():
        row, kept = store.load(key)
        # A broken model's pictures are no numbers, which a file of pictures cannot hold.
        sheets[name] = kept["class"] if row["finite"] else torch.full_like(kept["class"], torch.nan)
    return sheets


def _class_keys(plan: Audit) -> dict[str, str]:
    common, arms = common_facts(plan), [arm for arm in ("base", "hardened", "placebo") if arm in plan.models]
    drawn_by = {"base_again": "base"} | {arm: arm for arm in arms}
    return {name: key_of({**common, "class": name, "model": plan.sha256(arm)}) for name, arm in drawn_by.items()}


def _utility(plan: Audit, pictures: Mapping[str, Tensor], looks: Mapping[str, Features]) -> Results:
    clip = partial(plan.judges.clip_score, prompts=[plan.class_prompt] * plan.config.num_class_images)
    read = {name: plan.judges.attributes(images) for name, images in pictures.items()}
    values = plan.judges.reader.values if plan.judges.reader else {}
    scores = {name: clip(pictures[name]) for name in ("base", "hardened")}
    return asdict(class_utility(looks, read, values)) | {"clip": scores["hardened"], "clip_base": scores["base"]}


def _strangers(
    judges: Judges, protected: Mapping[str, Mapping[str, Tensor]], photos: Tensor | None, drawn: Features
) -> dict[str, Any]:
    if photos is None and not drawn.detected.any():
        raise UserError("the base draws no face for the class prompt: give photos in strangers_data_dir")
    known = None if photos is None else judges.embed(_unit(photos))
    return {name: asdict(band) for name, band in strangers_likeness(protected, known, drawn).items()}


# -- putting it together -------------------------------------------------------------------------------------


def _headline(plan: Audit, results: Results) -> Results:
    """Comparison and cost factor of the attack that costs least; where none works on the base, of the first.

    The worst case is one of those that count: of pairs whose attack works on the base.
    """
    first = results["by_attack"][0]
    worst = worst_attack(results["by_attack"]) or first
    rows = [row for row in results["attacks"] if spec_of(row) == worst["spec"]]
    names, counted = plan.judges.names, worst["cost_factor"]["worst"]
    costs = cost_factors(rows, names, worst["nominal_step"])
    return {
        "comparison": comparison(rows, names),
        "cost_factor": costs | {"worst": counted or costs["worst"], "spec": worst["spec"]},
    }


def _sheets(plan: Audit, class_pictures: Mapping[str, Tensor]) -> Sheets:
    sheets = {"class/base": class_pictures["base_again"]}
    sheets |= {f"class/{name}": class_pictures[name] for name in ("hardened", "placebo") if name in class_pictures}
    if plan.config.show_photos:
        sheets |= {f"photos/{person.id}": _unit(person.photos) for person in plan.subjects}
    return sheets


def common_facts(plan: Audit) -> dict[str, Any]:
    """What determines every cell alike."""
    config = plan.config
    prior = plan.class_images
    return {
        "schema": SCHEMA,
        "package": package_versions(),
        "judges": asdict(plan.judges.describe()),
        "drawing": [config.prompts, config.num_images, config.num_inference_steps, config.guidance_scale],
        "class": [plan.class_prompt, config.num_class_images, plan.seed],
        "class_images": None if prior is None else [len(prior), plan.sha256("base")],
        "models": {name: plan.sha256(name) for name in plan.models if name not in ("hardened", "placebo")},
        "consenting": tensor_hash(plan.consenting),
    }


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


def _check(plan: Audit) -> None:
    config = plan.config
    if not plan.subjects:
        raise UserError("there is nobody to audit: give at least one protected subject")
    ids = sorted(person.id for person in [*plan.subjects, *plan.others])
    if twice := [a for a, b in zip(ids, ids[1:], strict=False) if a == b]:
        raise UserError(f'two people have the id "{twice[0]}": rename one folder')
    if config.prior_loss_weight and plan.class_images is None:
        raise UserError(
            f"{config.prefix}prior_loss_weight is above 0 but there are no class pictures: draw some or set it to 0"
        )
    if not 0 < plan.nominal <= config.max_train_steps:
        raise UserError(
            f"the nominal attack of {plan.nominal} steps is not within {config.prefix}max_train_steps = "
            f"{config.max_train_steps}: raise the latter"
        )


class _CallablePackage(ModuleType):
    """`apdm.audit(...)` is a function of the Python API. Importing this package puts the package in the place of that
    function, so the package passes calls on to it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("apdm")._audit_models(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
