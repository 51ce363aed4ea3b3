"""The plan of an audit of models, or of attacks on one model: what is read with the models, and checked with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apdm.audit.inputs.attack_factory import AttackFactory, check_on_model
from apdm.audit.inputs.captions import warn_about_long_captions
from apdm.audit.inputs.models import load_models
from apdm.audit.inputs.people import PhotoFolders
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.suites import Entry, available_entries
from apdm.audit.results.common import ModelFile
from apdm.config import AttackConfig, AuditJobConfig
from apdm.core.errors import Faults
from apdm.core.files import model_hash
from apdm.data.separate_photos import check_separate
from apdm.export.layout import MODEL
from apdm.families import Family
from apdm.families.fit import check_steps
from apdm.families.prompts import check_prompts
from apdm.jobs.auditing.inputs import AuditInputs, load_inputs
from apdm.jobs.common.base_model import check_resolution
from apdm.jobs.common.face_networks import face_networks


def read_people_and_models(
    config: AuditJobConfig | AttackConfig,
    folders: PhotoFolders,
    paths: dict[str, str],
    entries: Sequence[Entry],
    faults: Faults,
    *,
    with_photos: bool = False,
    separate: bool = True,
) -> tuple[AuditInputs, dict[str, Family]]:
    """Read the people, the judges and the models, and check that the attacks can run. Mistakes are kept in `faults`.

    Args:
        paths: {name: path or name of a model}, of which one is "base".
        entries: the attacks.
        with_photos: whether protected photos are attacked.
        separate: whether no photo may be in two folders that must not share one.
    """

    def read_inputs() -> AuditInputs:
        faces = face_networks(config)
        inputs = load_inputs(config, folders, faces, entries=entries, models=paths, with_photos=with_photos)
        if separate:
            check_separate(inputs.subjects.sets)
        return inputs

    def checked_models() -> dict[str, Family]:
        models = read_models(config, paths)
        check_with_models(config, entries, models)
        return models

    return faults.of(read_inputs), faults.of(checked_models)


def make_plan(
    config: AuditJobConfig | AttackConfig,
    inputs: AuditInputs,
    models: dict[str, Family],
    paths: dict[str, str],
    entries: Sequence[Entry],
    command: str | None,
) -> AuditPlan:
    """Make the plan of what `read_people_and_models` has read. `command` is the command line, for the results.

    Raises:
        UserError: the adapter of `faceid` does not fit the base; or as in `AuditPlan`.
    """
    if inputs.adapter is not None:
        inputs.adapter.check(models["base"])
    plan = AuditPlan(
        options=config.audit,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        models=models,
        subjects=inputs.subjects,
        judges=inputs.judges,
        seed=config.seed,
        batch_size=config.sample_batch_size,
        entries=entries,
        files={name: model_file(path, models[name]) for name, path in paths.items()},
        command=command,
        adapter=inputs.adapter,
    )
    warn_about_long_captions(plan)
    return plan


def model_file(path: str, model: Family) -> ModelFile:
    """Return name and hash of a model for the results. `path` is the path or name that the user gave.

    Of a path on this machine the last part is kept; of a run's model the folder of the run too.
    """
    place, told = Path(path), path
    if place.is_absolute():
        told = "/".join(place.parts[-2:]) if place.name == MODEL else place.name
    return ModelFile(path=told, sha256=model_hash(model.origin or place))


def read_models(config: AuditJobConfig | AttackConfig, paths: dict[str, str]) -> dict[str, Family]:
    """Load models, {name: path or name}, of which one is "base".

    Raises:
        UserError: a model cannot be loaded, cannot be compared with the base, or cannot draw at the resolution.
    """
    models = load_models(
        paths,
        family=config.family,
        variant=config.variant,
        allow_pickle=config.allow_pickle,
        single_file_config=config.single_file_config,
        as_stored=config.dry_run,
    )
    check_resolution(models["base"], config.resolution)
    return models


def check_with_models(
    config: AuditJobConfig | AttackConfig, entries: Sequence[Entry], models: Mapping[str, Family]
) -> None:
    """Check what can be checked only with the models: the prompts, and whether the attacks fit the base.

    Raises:
        UserError: the model cannot read a prompt, cannot tell an attack's prompt from the class prompt, cannot draw in
            the way that an attack asks for, or has no layers of the kind that it trains. Or an attack that edits photos
            does nothing in so many sampling steps.
    """
    options, base = config.audit, models["base"]
    drawn = {"prompts": config.prompts, "edit_prompt": [options.edit_prompt] if options.edit_prompt else []}
    learned = {"instance_prompt": [config.instance_prompt]}
    check_prompts(base, learned=learned, class_prompt=config.class_prompt, drawn=drawn)
    check_steps(base, {f"{options.prefix}num_inference_steps": options.num_inference_steps})
    factory = AttackFactory(options, config.instance_prompt, config.class_prompt)
    for entry in available_entries(entries, models, factory, base)[0]:
        check_on_model(entry.spec, factory.make(entry.spec, seed=0), base, options.num_inference_steps)
