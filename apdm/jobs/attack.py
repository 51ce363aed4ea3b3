"""`apdm attack`: attack one model with photos of a person, and show how alike its pictures become meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from apdm.attacks.experts import ExpertSwap, ReleaseUnconditional
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.registry import is_zero_shot, without_words
from apdm.attacks.staged import stages
from apdm.audit.cells.cell import Cell
from apdm.audit.cells.matrix import Matrix
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.face_checks import check_faces
from apdm.audit.inputs.people import AuditSubjects, PhotoFolders
from apdm.audit.inputs.plan import ONLY_NOMINAL, AuditPlan
from apdm.audit.inputs.suites import Entry, choose_entries
from apdm.audit.one_model import attack_one_model
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.picture_names import file_name
from apdm.audit.results.schema import to_json
from apdm.config import AttackConfig
from apdm.config.prompts import quoted
from apdm.core.disk import require_parts
from apdm.core.errors import Faults, UserError
from apdm.core.files import delete, list_files, write_json
from apdm.core.logging import get_logger
from apdm.core.terminal import count
from apdm.data.edit_prompts import Edit, read_edits
from apdm.data.separate_photos import Role
from apdm.distributed.launch import join_processes, stop_on_signals_or_loss
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.trackers import Tracker, require_tracker
from apdm.export.attacked import attacked_by, export_attacked
from apdm.export.layout import ATTACK, ATTACKED_MODELS, CELLS, LIKENESS, REPORT
from apdm.export.pipeline import export_size
from apdm.families import Family
from apdm.jobs.auditing.output import KEPT, cell_store, claim_audit_dir, has_finished_attacks
from apdm.jobs.auditing.picture_sheets import save_attack_pictures
from apdm.jobs.auditing.plan import make_plan, read_people_and_models
from apdm.jobs.auditing.run import with_class_pictures
from apdm.jobs.common.prepare import keep_apart, prepare_process, warn_about_prompts
from apdm.jobs.common.results import AttackResult
from apdm.jobs.common.tracked import start_tracker, track_attack
from apdm.jobs.planning.audit_work import AuditWork
from apdm.jobs.planning.plan import Rows, audited_face_rows, show_plan
from apdm.jobs.planning.texts import captions_text, device_text, held_out_text, model_text, people_text
from apdm.report.attack_page import write_attack_page, write_drawing

logger = get_logger(__name__)

FACEID = FaceIDAdapter.name
TWO_DENOISERS = (ExpertSwap, ReleaseUnconditional)


def attack_model(config: AttackConfig, *, command: str | None = None) -> AttackResult:
    """Attack one model with the photos of each person in a folder, and measure likeness while each attack runs.

    The command `apdm attack` and the Python function `apdm.attack` both run this function. An attack gives exactly what
    the same attack gives in an audit of this model as base, with the same options, photos and seed.

    Args:
        command: the command line that was given, for attack.json.

    Returns:
        The output folder, and in the main process the content of attack.json.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept, and the same call goes on from there.
    """
    output = Path(config.output_dir)
    processes, device = join_processes()
    with stop_on_signals_or_loss(processes, KEPT, kept=lambda: has_finished_attacks(output)), ExitStack() as held:
        prepare_process(config.num_threads)
        require_tracker(config.report_to)
        warn_about_prompts(config.instance_prompt, config.class_prompt, audit=config.prompts)
        plan = processes.main_first(lambda: load_attack(config, command))
        judges = plan.judges
        processes.on_main(lambda: check_faces(list(plan.subjects.sets), judges.encoders, judges.face_score))
        processes.on_main(lambda: require_parts(output, sizes(config, plan)))
        processes.broadcast(lambda: claim_audit_dir(config, held))
        tracker = processes.on_main(lambda: start_tracker(config, held))
        processes.on_main(lambda: show_plan(attack_plan(config, plan, processes, device)))
        plan.models["base"].pipeline.to(device)
        results = _run(config, plan, output, processes, tracker)
    models = output / ATTACKED_MODELS if config.save_model else None
    return AttackResult(output_dir=output, results=results, models_dir=models)


# -- the parts of `apdm attack` -------------------------------------------------------------------------------


def load_attack(config: AttackConfig, command: str | None) -> AuditPlan:
    """Read and check all input, before anything is written.

    Returns:
        The plan of an audit whose only model is the attacked one, under the name "base".

    Raises:
        UserError: something is missing or wrong. All that was found is told.
    """
    options = config.audit
    folders, paths = replace(PhotoFolders.below(config.photos, options), other=None), {"base": config.base}

    with Faults() as faults:
        given = {"photos": config.photos, **options.photo_folders}
        faults.of(lambda: keep_apart(given, output_dir=config.output_dir))
        # If an attack is wrong, the nominal one takes the place of all, so that the rest is checked too.
        entries = faults.of(lambda: checked_entries(config)) or ONLY_NOMINAL
        inputs, models = read_people_and_models(config, folders, paths, entries, faults, separate=trains(config))
    plan = make_plan(config, inputs, models, paths, entries, command)
    return replace(plan, edits=_edits(config, inputs.subjects))


def trains(config: AttackConfig) -> bool:
    """Whether one of the attacks trains. The others may be judged on the photos that they are given."""
    return not all(map(is_zero_shot, config.attack))


def _edits(config: AttackConfig, subjects: AuditSubjects) -> dict[str, list[Edit]]:
    """{person: what is asked of each photo}; empty without the option. Raises UserError if a photo has no prompt."""
    if config.edit_prompts is None:
        return {}
    if not any(spec != FACEID and is_zero_shot(spec) for spec in config.attack):
        raise UserError("edit_prompts goes with attacks that edit photos, such as diffedit or masactrl; name one")
    return read_edits(config.edit_prompts, subjects.files(Role.PROTECTED))


def checked_entries(config: AttackConfig) -> tuple[Entry, ...]:
    """Return the attacks as entries of an audit. They are checked as far as that can be done without the model.

    Raises:
        UserError: an attack needs a second model, or its model cannot be saved.
    """
    factory = AttackFactory(config.audit, config.instance_prompt, config.class_prompt)
    entries = choose_entries("quick", config.attack, factory)
    for spec in config.attack:
        attack = factory.make(spec, seed=config.seed)
        if config.save_model and is_zero_shot(spec):
            raise UserError(f"{spec} trains no model that could be saved; leave out save_model")
        if missing := [need for need in attack.needs if need != "base"]:
            raise UserError(
                f"{spec} needs a {' and a '.join(missing)} model beside the attacked one; apdm audit takes "
                f"{' and '.join(f'--{name}' for name in missing)}"
            )
        if config.save_model and any(isinstance(part, TWO_DENOISERS) for part in stages(attack)):
            raise UserError(f"{spec} draws with two denoisers, which no pipeline folder holds; leave out save_model")
    warn_of_options_without_effect(config)
    return entries


def warn_of_options_without_effect(config: AttackConfig) -> None:
    """Log a warning for each option of the nominal attack that was given, but that none of the attacks takes."""
    usual = {field.name: field.default for field in fields(AttackConfig)}

    def made(**changes: Any) -> list[dict[str, object]]:
        options = replace(config.audit, **changes)
        factory = AttackFactory(options, config.instance_prompt, config.class_prompt)
        return [factory.make(spec, seed=config.seed).params() for spec in config.attack]

    for name in ("max_train_steps", "learning_rate", "train_batch_size", "prior_loss_weight"):
        value = getattr(config, name)
        if value != usual[name] and made() == made(**{name: usual[name]}):
            spec = next((one for one in config.attack if not is_zero_shot(one)), "")
            has_options = ":" in (spec.partition(".py:")[2] if ".py:" in spec else spec)  # file.py:Name:option=value
            own = f"{spec}{',' if has_options else ':'}{name}={value}"
            mend = f"{spec} says its own" if f"{name}=" in spec else f"write it into the attack: {own}"
            mend = mend if spec else "leave it out"
            logger.warning("--%s %s has no effect, because no attack takes it; %s", name, value, mend)


def attack_plan(config: AttackConfig, plan: AuditPlan, processes: ProcessGroup, device: torch.device) -> Rows:
    """Return what the attack is about to do, for the user."""
    counts = plan.subjects.counts
    attacks = [plan.factory.make(entry.spec, seed=config.seed) for entry in plan.entries]
    return {
        "model": model_text(config.base, plan.models["base"]),
        "people": people_text(list(counts.attacked)),
        "photos": f"{count(sum(counts.attacked.values()), 'photo')} that the attacker "
        f"{'trains on' if trains(config) else 'has'}; "
        f"{held_out_text(counts)}",
        "captions": captions_text(plan.subjects.captions),
        **audited_face_rows(plan.subjects.sets, plan.judges),
        "asked": quoted(config.prompts),
        "attacks": ", ".join(
            f"{attack_spec} ({count(one.max_train_steps, 'step') if one.max_train_steps else 'no training'})"
            for attack_spec, one in zip(config.attack, attacks, strict=True)
        ),
        "device": device_text(device, processes.size),
        "output": str(Path(config.output_dir) / REPORT),
    }


def work_of(plan: AuditPlan) -> AuditWork:
    """What the attacks do. Features of class pictures are compared with those of a second set, if they are read."""
    class_sets = 1 if plan.judges.extractor is None else 2
    return AuditWork(plan=plan, cells=Matrix.of(plan, plan.entries).cells, class_sets=class_sets)


def sizes(config: AttackConfig, plan: AuditPlan) -> dict[str, int]:
    """Return what the attacks write until their end, besides what is there already: {part: bytes}, upper bounds."""
    output, work = Path(config.output_dir), work_of(plan)
    parts = {"pictures": work.pictures_size(output)}
    if config.save_model:
        missing = [cell for cell in work.cells if not _has_model(output, cell)]
        parts["attacked models"] = len(missing) * export_size(plan.models["base"])
    return parts


def model_folder(output: Path, cell: Cell) -> Path:
    """Where the attacked model of a cell is kept."""
    return output / ATTACKED_MODELS / file_name(cell.entry.spec) / cell.person.id


def _has_model(output: Path, cell: Cell) -> bool:
    """Whether the attacked model of a cell is there. One of the same attack with other options or photos is not it."""
    return attacked_by(model_folder(output, cell)) == cell.key


def _delete_other_models(output: Path, cells: Sequence[Cell]) -> None:
    """Delete attacked models of earlier runs that are of no attack of this run."""
    ours = {cell.key for cell in cells}
    for folder in sorted((output / ATTACKED_MODELS).glob("*/*")):
        if attacked_by(folder) not in ours:
            delete(folder)
            if not list_files(folder.parent):
                delete(folder.parent)


def _run(
    config: AttackConfig, plan: AuditPlan, output: Path, processes: ProcessGroup, tracker: Tracker | None
) -> AttackResults | None:
    """Run the attacks, and write attack.json, the pictures and the page. The tracker gets them too."""
    plan, drawn, latents = with_class_pictures(config, plan, processes)
    cells = Matrix.of(plan, plan.entries).cells
    processes.on_main(lambda: _delete_other_models(output, cells))
    seen = plan.judges.features(drawn)
    del drawn  # of large pictures, gigabytes

    def keep(cell: Cell, attacked: Family) -> None:
        spec, base = without_words(cell.entry.spec), plan.files["base"].sha256
        export_attacked(attacked, model_folder(output, cell), attack=spec, base=base, cell=cell.key)

    done = attack_one_model(
        plan,
        latents,
        seen,
        store=cell_store(output, CELLS, processes, config.reuse_audits),
        processes=processes,
        keep=keep if config.save_model else None,
        again=lambda cell: config.save_model and not _has_model(output, cell),
    )
    if done is None:
        return None
    results, shown = done
    pictures, sheets = save_attack_pictures(results, shown, output)
    write_json(output / ATTACK, to_json(results))
    write_attack_page(results, output / REPORT, pictures)
    write_drawing(results, output / LIKENESS)
    if tracker is not None:
        track_attack(tracker, results, sheets, output / REPORT)
    return results
