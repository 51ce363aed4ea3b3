"""Steps that several jobs take before their long work: threads, prompts, datasets, and the output folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apdm.config import AttackConfig, AuditJobConfig, JobConfig, PerturbConfig, to_yaml
from apdm.config.continuation import has_same_options
from apdm.config.groups.dataset import CLASS, PEOPLE
from apdm.config.prompts import CLASS_PROMPT, identifier_words, prompts_without_identifier, quoted
from apdm.core.cpus import default_threads
from apdm.core.errors import Faults, UserError
from apdm.core.files import MARKER
from apdm.core.libraries import quiet_bars
from apdm.core.logging import get_logger
from apdm.data.dataset_photos import DatasetSource, photos_on_disk
from apdm.export.layout import CONFIG
from apdm.jobs.common.first_checks import has_only_begun

logger = get_logger(__name__)

Resumable = PerturbConfig | AuditJobConfig | AttackConfig


def prepare_process(num_threads: int | None) -> None:
    """Set the number of CPU threads, and switch off the progress bars of libraries.

    Args:
        num_threads: threads of this process; None stands for `apdm.core.cpus.default_threads`.
    """
    torch.set_num_threads(num_threads or default_threads())
    quiet_bars()


def warn_about_prompts(
    instance_prompt: str, class_prompt: str, *, audit: Sequence[str] = (), validation: Sequence[str] = ()
) -> None:
    """Log a warning if the prompts of a job do not fit together.

    Args:
        audit: the prompts that an audit draws; empty without an audit.
        validation: the prompts that validation draws; empty without validation.
    """
    learnt = identifier_words(instance_prompt, class_prompt)
    if class_prompt == CLASS_PROMPT and len(learnt) > 1:
        message = 'class_prompt is "%s", which is not instance_prompt without its rare word: give class_prompt'
        logger.warning(message, class_prompt)
    if audit and (lacking := prompts_without_identifier(audit, instance_prompt, class_prompt)):
        logger.warning('prompts without "%s" ask for somebody else: %s', " ".join(learnt), quoted(lacking))
    if validation and len(prompts_without_identifier(validation, instance_prompt, class_prompt)) == len(validation):
        logger.warning('none of validation.prompts has "%s": they show nothing of the subject', " ".join(learnt))


def photos_of_datasets(config: JobConfig, faults: Faults | None = None) -> AbstractContextManager[None]:
    """Return a context in which the photos of the job's datasets, if there are any, lie in the folders of the options.

    Only the main process may enter it. At its end the photos are deleted.

    Args:
        faults: keeps what is wrong with the datasets. By default it is raised.

    Raises:
        UserError: on entering, if a dataset cannot be used.
    """
    sources = {}
    if config.dataset_name is not None:
        sources[PEOPLE] = DatasetSource(
            option="dataset_name",
            name=config.dataset_name,
            config_name=config.dataset_config_name,
            split=config.dataset_split,
            image_column=config.image_column,
            subject_column=config.subject_column,
            subjects=config.dataset_subjects,
            max_subjects=config.max_subjects,
        )
    if config.class_dataset_name is not None:
        sources[CLASS] = DatasetSource(
            option="class_dataset_name",
            name=config.class_dataset_name,
            config_name=config.class_dataset_config_name,
            split=config.class_dataset_split,
            image_column=config.class_image_column,
            max_photos=config.num_class_images,
        )
    return photos_on_disk(config.place(config.output_dir), sources, faults)


def keep_apart(folders: Mapping[str, str], *, output_dir: str, class_data_dir: str | None = None) -> None:
    """Check that no folder to which a run writes lies in a folder with photos of people, or the other way round.

    Otherwise the next run would take what was written for people, and a run that replaces its output would delete
    photos.

    Args:
        folders: {option: the folder with photos that it names}.
        output_dir: the output folder; it need not exist.
        class_data_dir: the folder for class pictures; None if it is inside the output folder.

    Raises:
        UserError: one of the folders lies in the other.
    """
    for name, written in (("output_dir", output_dir), ("class_data_dir", class_data_dir or output_dir)):
        for option, folder in folders.items():
            one, other = Path(os.path.realpath(written)), Path(os.path.realpath(folder))
            if one == other or one in other.parents or other in one.parents:
                raise UserError(
                    f"{name} {written} and {option} {folder} lie in one another: originals are never overwritten or "
                    f"mixed with what a run writes; choose another {name}"
                )


def goes_on(config: Resumable) -> bool:
    """Whether the output folder is that of an earlier run with the same options, which this run continues.

    The options of a run that ended before its long work began may differ, because nothing of its work is there.
    """
    output = Path(config.output_dir)
    return (output / MARKER).exists() and (
        has_only_begun(output) or has_same_options(output / CONFIG, resolved(config))
    )


def resolved(config: Resumable) -> str:
    """The options as a run writes them into its output folder, without those that only say how it goes on."""
    fresh: dict[str, Any] = {"overwrite_output_dir": False}
    fresh |= {} if isinstance(config, PerturbConfig) else {"reuse_audits": []}
    return to_yaml(replace(config, **fresh))
