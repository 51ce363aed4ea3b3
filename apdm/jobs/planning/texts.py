"""The words for parts of a plan that jobs have in common: their models, people, photos and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from apdm.audit.doubts import few_class_pictures, few_pictures, few_strangers, lacking_judges
from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.results.common import PhotoCounts
from apdm.config import AuditJobConfig, AuditOptions, JobConfig
from apdm.core.terminal import count
from apdm.data.photo_captions import Captions
from apdm.data.photo_sets import LAST_THIRD, has_sets
from apdm.families import Family
from apdm.metrics.judges import Judges

SHOWN_IDS = 6  # ids of people that are listed before the others are only counted


def sets_text(
    folder: str, protecting: JobConfig | AuditJobConfig | None, attacking: AuditOptions | None = None
) -> str | None:
    """What the sets of each person's photos are used for; None if no set is used.

    Args:
        folder: the folder of the people.
        protecting: the options that name the set which is protected; None if no photos of the folder are.
        attacking: the options of the audit; None without an audit.
    """
    if not has_sets(folder):
        return None
    uses = [f"set_{protecting.protected_set} is protected"] if protecting is not None else []
    if attacking is not None:
        with_model = not isinstance(attacking, AuditJobConfig) or attacking.hardened is not None
        uses += [f"the attacker has set_{attacking.attacker_set}"] * (with_model and attacking.attack_data_dir is None)
        uses += [f"set_{attacking.holdout_set} is held out"] * (attacking.holdout_data_dir is None)
    return ", ".join(uses) + "; other sets are not read" if uses else None


def held_out_text(counts: PhotoCounts, whom: str = "") -> str:
    """Return how many photos are held out, and which if they were chosen by the program.

    Args:
        counts: how many photos of each person are used for what.
        whom: from whom they are held out, with a space before it.
    """
    text = f"{sum(counts.held_out.values())} held out"
    return text + f"{whom}: {LAST_THIRD}" * (counts.held_out_from == "originals")


def captions_text(captions: Sequence[Captions]) -> str | None:
    """Return how many captions attacks train on, and from where; None if there are none. No caption is shown.

    `captions` are those of each person who has some.
    """
    numbers = Counter(column for own in captions for column, texts in own.items() for _ in texts)
    each = ", ".join(f"{column}: {number}" for column, number in sorted(numbers.items()))
    return f"{each}, of {len(captions)} {'person' if len(captions) == 1 else 'people'}" if each else None


def unreliable_text(reasons: Sequence[str]) -> str | None:
    """Return why an audit will claim no protection whatever it measures; None if there is no such reason."""
    return f"the audit can claim no protection: {'; '.join(reasons)}" if reasons else None


def model_text(name: str, family: Family) -> str:
    """Return where a model comes from, its family, and how large its denoiser is.

    Args:
        name: the path or name that the user gave.
    """
    size = sum(weight.numel() for weight in family.denoiser.parameters())
    return f"{name} ({family.name}, {size:,} weights in the {family.denoiser_name})"


def prompts_text(instance_prompt: str, class_prompt: str) -> str:
    """Return what attackers learn, and what the class is called."""
    return f'"{instance_prompt}" is learnt, "{class_prompt}" is the class'


def people_text(ids: Sequence[str]) -> str | None:
    """Return how many people there are, and the first of their ids; None if there is nobody."""
    shown = ", ".join(ids[:SHOWN_IDS]) + ", ..." * (len(ids) > SHOWN_IDS)
    return f"{len(ids)} ({shown})" if ids else None


def device_text(device: torch.device, processes: int, kind: str | None = None) -> str:
    """Return the device of the main process, and how many processes share the work.

    Args:
        processes: the number of processes.
        kind: the kind of the engine, such as "ddp"; None if the job trains no model in parallel.
    """
    text = f"{device}, {device_name(device)}" if device_name(device) else str(device)
    if processes > 1:
        text += f", {processes} processes" + (f" ({kind})" if kind else "")
    if device.type == "cpu":
        text += f", {count(torch.get_num_threads(), 'thread')}" + " each" * (processes > 1)
    return text


def device_name(device: torch.device) -> str:
    """Return the name of an accelerator as its maker calls it; an empty text if there is none."""
    if device.type == "cpu":
        return ""
    return str(getattr(torch.get_device_module(device), "get_device_name", lambda _: "")(device))


def foreseen(judges: Judges, subjects: AuditSubjects, *, pictures: int, class_pictures: int) -> list[str]:
    """Why an audit of models will claim no protection whatever it measures, one clause each.

    Args:
        pictures: pictures that an attack draws of one person with all its seeds, at one step.
        class_pictures: class pictures of each model.
    """
    counts = few_pictures(pictures) + few_class_pictures(class_pictures)
    return lacking_judges(judges.describe()) + few_given(subjects) + counts


def few_given(subjects: AuditSubjects, *, class_pictures: int | None = None) -> list[str]:
    """The clause on strangers that are too few, in a list of one; empty if there are enough, or it is not known.

    Args:
        class_pictures: class pictures of the base, whose faces are the strangers if there are no photos of some.
    """
    if subjects.strangers is not None:
        return few_strangers(len(subjects.strangers))
    return [] if class_pictures is None else few_strangers(class_pictures, "class pictures")
