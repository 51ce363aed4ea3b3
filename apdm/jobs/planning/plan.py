"""What a job says before its long work: the plan, a few lines that name what it is about to do with what.

A plan is a list of rows, a name and a value each. Every job makes its own rows, and `show_plan` logs them. To say more
in a plan, add a row to the function of that job, `..._plan`: `apdm harden` has it in `hardening/plan.py`, `apdm attack`
in `attack.py`, the others here. A row without a value is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from apdm.audit.doubts import doubts_about_judges, few_pictures, not_attacked, one_encoder, reasons_left_out
from apdm.audit.inputs.face_checks import look_at_faces
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos
from apdm.audit.inputs.search_space import SearchSpace
from apdm.audit.inputs.suites import Entry
from apdm.config import AuditJobConfig, JobConfig, PerturbConfig, VerifyConfig
from apdm.config.groups.image_layer import NO_METHOD
from apdm.config.judges import EXAMPLE
from apdm.config.photo_run import OTHERS, PROMPTS, output_of_run, settings_of_run
from apdm.config.prompts import quoted
from apdm.core.logging import get_logger
from apdm.core.terminal import columns, count
from apdm.data.photo_captions import SUFFIXES, Captions, caption_files
from apdm.data.photo_files import moving, name_some, passed_over, printable
from apdm.data.separate_photos import PhotoSet
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import CONFIG, IMAGES, REPORT
from apdm.faces.photo_faces import PhotoFaces
from apdm.families import Family
from apdm.jobs.photos.job import PhotoJob
from apdm.jobs.planning.texts import (
    captions_text,
    device_text,
    few_given,
    foreseen,
    held_out_text,
    model_text,
    people_text,
    prompts_text,
    sets_text,
    unreliable_text,
)
from apdm.metrics.judges import Judges

logger = get_logger(__name__)

Rows = dict[str, str | None]


def show_plan(rows: Mapping[str, str | None]) -> None:
    """Log a plan, one message per row. Rows without a value are left out."""
    for line in columns({name: value for name, value in rows.items() if value}):
        logger.info("%s", line)


def perturb_plan(
    config: PerturbConfig, job: PhotoJob, family: Family, *, processes: ProcessGroup, device: torch.device
) -> Rows:
    """Return the plan of a run that protects photos.

    Args:
        job: the photos and how they are protected.
        family: the model that the photos are protected against.
    """
    number, budget = sum(map(len, job.photos.values())), round(255 * job.protection.epsilon, 1)
    return {
        "model": model_text(config.pretrained_model_name_or_path, family),
        "people": people_text(list(job.photos)),
        "photos": f"{count(number, 'photo')} in {config.photo_source}",
        "sets": sets_text(config.instance_data_dir, config),
        **photo_notes(config.instance_data_dir),
        "against": layers_text(config, job),
        "prompts": prompts_text(config.instance_prompt, config.class_prompt),
        "changes": f"each pixel by at most {budget:g} of 255" + ", before compression" * (job.saved.format == "jpeg"),
        **face_rows(job),
        "memory": job.memory_text,
        "steps": f"{job.protection.total_steps} for each person" if job.protection.total_steps else None,
        "device": device_text(device, processes.size),
        "output": str(Path(config.output_dir) / IMAGES),
    }


def layers_text(config: JobConfig, job: PhotoJob) -> str:
    """What the photos are protected against."""
    layers = [f"fine-tuning ({job.protection.method})"] * (job.protection.method != NO_METHOD)
    layers += ["zero-shot adapters"] * (job.faces is not None)
    alone = "; not zero-shot adapters, because objects have no faces" * (config.subject_kind == "object")
    return " and ".join(layers) + alone


def face_rows(job: PhotoJob) -> Rows:
    """Return a row for each person about the faces in the photos that are protected."""
    return rows_about_faces(
        (found, found.text([printable(photo.path.name) for photo in job.photos[found.subject]]))
        for found in job.describe_faces()
    )


def audited_face_rows(sets: Sequence[PhotoSet], judges: Judges) -> Rows:
    """Return a row for each person about the faces in the squares that an audit works with."""
    return rows_about_faces((seen.faces, seen.text) for seen in look_at_faces(sets, judges.face_encoders))


def rows_about_faces(found: Iterable[tuple[PhotoFaces, str]]) -> Rows:
    """Return a row for each person's photos. Those with one face in each photo share a row.

    Args:
        found: what was found in each person's photos, and what is said about it.
    """
    rows: dict[str, list[str]] = {}
    plain = 0
    for faces, text in found:
        if faces.is_plain:
            plain += 1
        else:
            rows.setdefault(f"faces of {faces.subject}", []).append(text)
    said: Rows = {name: "; ".join(texts) for name, texts in rows.items()}
    if plain:
        said["faces"] = f"one in each photo of {count(plain, 'other folder' if said else 'folder')}"
    return said


def audit_plan(
    config: AuditJobConfig,
    plan: AuditPlan,
    photos: ProtectedPhotos | None,
    *,
    processes: ProcessGroup,
    device: torch.device,
) -> Rows:
    """Return the plan of an audit.

    Args:
        plan: the models, the people and the attacks.
        photos: the protected photos that are attacked too, if any.
    """
    rows: Rows = {name: model_text(getattr(config, name), model) for name, model in plan.models.items()}
    people, counts = plan.subjects.protected, plan.subjects.counts
    captions = [*plan.subjects.captions, *(photos.captions if photos is not None else [])]
    entries, left_out = plan.available()
    ids = [person.id for person in people]
    attacked = {one for entry in entries if entry.required for one in ids[: entry.people]}
    repeats = min((entry.seeds or plan.repeats for entry in entries if entry.required), default=plan.repeats)
    drawn = min(repeats, plan.repeats) * plan.drawing.number
    expected = foreseen(plan.judges, plan.subjects, pictures=drawn, class_pictures=plan.options.num_class_images)
    doubts = [*expected, *not_attacked(left_out, ids, attacked)]
    return rows | {
        "people": people_text(ids),
        "photos": f"{count(sum(counts.attacked.values()), 'photo')} that the attacker trains on; "
        f"{held_out_text(counts)}",
        "sets": sets_text(
            str(config.subjects), config if photos is not None and config.photos is None else None, config
        ),
        "others": people_text([person.id for person in plan.subjects.others]),
        "captions": captions_text(captions),
        "strangers": None if plan.subjects.strangers is None else count(len(plan.subjects.strangers), "photo"),
        **audited_face_rows(plan.subjects.sets, plan.judges),
        **photo_notes(config.subjects, config.photos, *config.photo_folders.values(), captions=captions),
        "prompts": prompts_text(config.instance_prompt, config.class_prompt),
        "asked": quoted(config.prompts),
        "attacks": f"{len(entries)}, {'given' if config.attacks else f'suite {config.suite}'}: "
        + length_text(plan, entries),
        "not run": "; ".join(reasons_left_out([one for one in left_out if not one.required])),
        "search": search_text(config, plan),
        "attacked too": None if photos is None else f"the protected photos in {config.protected_photos}",
        "unreliable": unreliable_text(doubts),
        "device": device_text(device, processes.size),
        "output": str(Path(config.output_dir) / REPORT),
    }


def length_text(plan: AuditPlan, entries: Sequence[Entry]) -> str:
    """How long the nominal attack is on which model, and how many people and seeds the attacks have at most."""
    nominal = plan.factory.nominal_step
    seeds = max(min(entry.seeds or plan.repeats, plan.repeats) for entry in entries)
    text = f"{count(nominal, 'step')} of the nominal one"
    if plan.options.max_train_steps > nominal and any(entry.long for entry in entries):
        text += f", on the hardened model {plan.options.max_train_steps}"
    everybody = len(plan.subjects.protected)
    if everybody > 1 and all(entry.people == 1 for entry in entries):
        text += f", on one of {everybody} people"
    return f"{text}, {count(seeds, 'seed')}"


def search_text(config: AuditJobConfig, plan: AuditPlan) -> str | None:
    """Return an attacker's search in words; None if there is none."""
    if plan.search is None:
        return None
    samples = SearchSpace(plan.factory, plan.search.samples).samples
    people = min(plan.search.people, len(plan.subjects.protected))
    return (
        f"{count(plan.search.trials, 'trial')} of {samples} pictures on each model, with the photos of "
        f"{'one person' if people == 1 else f'{people} people'}"
    )


def photo_audit_plan(
    config: AuditJobConfig,
    plan: AuditPlan,
    specs: PhotoAttackSpecs,
    photos: ProtectedPhotos,
    *,
    processes: ProcessGroup,
    device: torch.device,
) -> Rows:
    """Return the plan of an audit of photos alone. It says which values were taken from the run that protected them.

    Args:
        plan: the attacked model and the people.
        specs: the attacks and the purifiers.
        photos: the photos that are attacked.
    """
    judges = plan.judges.describe()
    doubts = [*one_encoder(judges), *doubts_about_judges(judges.encoders, photos.misled(judges.encoders))]
    doubts += few_given(plan.subjects, class_pictures=plan.options.num_class_images)
    doubts += few_pictures(plan.repeats * plan.drawing.number)
    run = settings_of_run(str(config.protected_photos))
    taken = [name for name in ("base", *PROMPTS, *OTHERS) if name in run and run[name] == getattr(config, name)]
    counts = plan.subjects.counts
    held_out = held_out_text(counts, " from both arms")
    return {
        "model": model_text(str(config.base), plan.models["base"]),
        "people": people_text(list(counts.attacked)),
        "photos": f"{count(sum(counts.attacked.values()), 'photo')} in {config.photos}, clean and protected "
        f"({config.protected_photos}), as squares of {config.resolution} pixels; {held_out}",
        "as protected": f"{', '.join(taken)}: as {CONFIG} in {config.protected_photos} says" if taken else None,
        "strangers": None if plan.subjects.strangers is None else count(len(plan.subjects.strangers), "photo"),
        "sets": sets_text(str(config.photos), config, config),
        **audited_face_rows(plan.subjects.sets, plan.judges),
        "captions": captions_text(photos.captions),
        **photo_notes(config.photos, *config.photo_folders.values(), captions=photos.captions),
        "prompts": prompts_text(config.instance_prompt, config.class_prompt),
        "asked": quoted(config.prompts),
        "attacks": ", ".join(specs.names)
        + f"; at most {count(plan.factory.nominal_step, 'step')} of the first" * specs.training
        + f", {count(plan.repeats, 'seed')}",
        "purified by": ", ".join(specs.purifiers),
        "unreliable": unreliable_text(doubts),
        "not measured": None if plan.judges.extractor else f"likeness of whole pictures; --judge {EXAMPLE} measures it",
        "device": device_text(device, processes.size),
        "output": str(Path(config.output_dir) / REPORT),
    }


def verify_plan(config: VerifyConfig, ids: Sequence[str], photos: Sequence[Path], *, captions: int, files: int) -> Rows:
    """Return the plan of a check.

    Args:
        ids: the ids that are looked for.
        photos: the photos that are looked for.
        captions: the number of captions that are looked for.
        files: the number of files that are looked at.
    """
    return {
        "folder": f"{config.output_dir}, {count(files, 'file')}",
        "people": people_text(ids) or "none to look for; name the folder of their photos with --subjects",
        "photos": f"{count(len(photos), 'photo')} in {config.subjects}" if photos else None,
        "captions": f"{count(captions, 'text')} beside the photos" if captions else None,
        **photo_notes(config.subjects, captions=[dict.fromkeys(["text", *SUFFIXES], ())] if captions else []),
    }


def photo_notes(*folders: str | None, captions: Sequence[Captions] = ()) -> Rows:
    """Return rows about folders of photos: whether they hold protected photos, and what in them is not read.

    Not read are files that are no photos, and frames after the first.

    `captions` are those of each person. The files that they were read from are no photos, but they are read.
    """
    read = caption_files({column for own in captions for column in own})
    places = [Path(folder) for folder in folders if folder is not None]
    protected = ", ".join(printable(str(place)) for place in dict.fromkeys(places) if _holds_protected(place))
    return {
        "no originals": f"{protected}: apdm protected these photos before" if protected else None,
        "passed over": passed_over(places, read),
        "first frame": name_some(moving(places)) or None,
    }


def _holds_protected(folder: Path) -> bool:
    """Whether photos, or those of one person, are the protected ones of a run."""
    photos = folder if folder.name == IMAGES else folder.parent
    return photos.name == IMAGES and output_of_run(photos) is not None
