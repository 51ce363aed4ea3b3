"""Steps that several jobs take before their long work: set the threads, load the model, draw the class pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from apdm.config import AttackConfig, AuditingConfig, AuditJobConfig, HardenConfig, JobConfig, PerturbConfig, to_yaml
from apdm.config.continuation import has_same_options
from apdm.config.dataset import CLASS, PEOPLE
from apdm.config.prompts import CLASS_PROMPT, identifier_words, prompts_without_identifier, quoted
from apdm.core.cpus import default_threads
from apdm.core.errors import Faults, UserError
from apdm.core.files import MARKER, model_hash
from apdm.core.libraries import quiet_bars
from apdm.core.logging import get_logger
from apdm.data.class_images import ClassImages, count_drawn
from apdm.data.dataset_photos import DatasetSource, photos_on_disk
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import load_images
from apdm.export.layout import CLASS_IMAGES, CONFIG
from apdm.families import Family, Posterior, load_family
from apdm.families.encoding import encode_images
from apdm.families.load import variant_of_each

logger = get_logger(__name__)

Resumable = PerturbConfig | AuditJobConfig | AttackConfig
TOO_LARGE = 4  # times the side that the model was made for; a smaller difference may be meant


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


def load_base(config: JobConfig) -> Family:
    """Load the pipeline of a job. Raises UserError if it cannot be loaded, or cannot draw at `config.resolution`."""
    base = load_family(
        config.pretrained_model_name_or_path,
        family=config.family,
        revision=config.revision,
        variant=config.variant,
        allow_pickle=config.allow_pickle,
        single_file_config=config.single_file_config,
        as_stored=config.dry_run,
    )
    check_resolution(base, config.resolution)
    return base


def load_base_and_start(config: HardenConfig) -> tuple[Family, Family]:
    """Load the original model and the model to harden.

    Both are the same object, unless `reference_model_name_or_path` is set. Then the model to harden was hardened
    before, and the reference is its original.

    Returns:
        The original model, whose denoiser is the reference phi; and the model to harden, whose denoiser is the first
        theta.

    Raises:
        UserError: a model cannot be loaded or cannot draw at this resolution, or the two models have different
            architectures.
    """
    if config.reference_model_name_or_path is None:
        start = load_base(config)
        return start, start
    names = config.pretrained_model_name_or_path, config.reference_model_name_or_path
    variants = variant_of_each(names, config.variant)
    start, base = (
        load_base(replace(config, pretrained_model_name_or_path=name, variant=variants[name])) for name in names
    )
    if start.training_target != base.training_target:
        raise UserError(
            f"{config.pretrained_model_name_or_path} predicts {start.training_target}, its original "
            f"{config.reference_model_name_or_path} {base.training_target}: name the model that was hardened"
        )
    ours, theirs = ({name: p.shape for name, p in family.denoiser.named_parameters()} for family in (start, base))
    if ours != theirs:
        raise UserError(
            f"{config.reference_model_name_or_path} is not the original of {config.pretrained_model_name_or_path}: "
            "their denoisers differ in names or shapes of weights; name the model that was hardened"
        )
    return base, start


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
    """Whether the output folder is that of an earlier run with the same options, which this run continues."""
    note = Path(config.output_dir) / CONFIG
    return (note.parent / MARKER).exists() and has_same_options(note, resolved(config))


def resolved(config: Resumable) -> str:
    """The options as a run writes them into its output folder, without those that only say how it goes on."""
    fresh: dict[str, Any] = {"overwrite_output_dir": False}
    fresh |= {} if isinstance(config, PerturbConfig) else {"reuse_audits": []}
    return to_yaml(replace(config, **fresh))


def check_resolution(base: Family, resolution: int) -> None:
    """Raise UserError if the model cannot draw squares with a side of `resolution` pixels.

    A warning says so if the squares are much larger than those that the model was made for.
    """
    factor = base.size_multiple
    if resolution % factor:
        near = max(factor, round(resolution / factor) * factor)
        raise UserError(f"resolution {resolution} is no multiple of the model's {factor}; try {near}")
    own = base.denoiser.config.get("sample_size")
    if isinstance(own, int) and resolution >= TOO_LARGE * own * base.vae_scale:
        side = own * base.vae_scale
        logger.warning(
            "the model draws squares of %d pixels, and resolution is %d; give --resolution %d", side, resolution, side
        )


def own_class_pictures(config: JobConfig, base: Family) -> list[PhotoSet]:
    """Check the folder of class pictures before any long work. Nothing is written.

    Returns:
        The pictures of the user's own, to be compared with the subjects' photos, in a list of one. It is empty if the
        base model draws the class pictures.

    Raises:
        UserError: the folder cannot be used, see `ClassImages.own_pictures`, or holds the output folder.
    """
    files, folder = own_class_files(config, base), str(config.class_data_dir)
    if not files:
        return []
    images = load_images(files, config.resolution)
    if small := [file for file in files if _shorter_side(file) < config.resolution]:
        logger.warning(
            "%d of %d class pictures are smaller than resolution %d and are enlarged, which the model learns to draw: "
            "the first is %s",
            *(len(small), len(files), config.resolution, small[0]),
        )
    return [PhotoSet.of(Role.CLASS, folder, files, images)]


def own_class_files(config: JobConfig, base: Family) -> list[Path]:
    """Return the files of the class pictures of the user's own. Raises UserError as `own_class_pictures`."""
    if config.class_data_dir is None:
        return []
    folder = Path(config.class_data_dir)
    if Path(os.path.realpath(config.output_dir)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"output_dir {config.output_dir} lies in class_data_dir {folder}; give the class pictures another folder"
        )
    return class_images(config, base).own_pictures(folder, replace=False)[: config.num_class_images]


def _shorter_side(picture: Path) -> int:
    with Image.open(picture) as image:
        return min(image.size)


def class_images(config: JobConfig | AuditingConfig, base: Family) -> ClassImages:
    """Return how the base model draws the class pictures of a job."""
    return ClassImages(
        prompt=config.class_prompt,
        model=model_hash(base.source or Path(str(config.base))),
        variant=config.variant,
        configuration=configuration_hash(base),
        seed=config.seed,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        resolution=config.resolution,
    )


def configuration_hash(family: Family) -> str:
    """Return one SHA-256 of the classes and configurations of all parts of a pipeline, in hex."""
    parts = {}
    for name, part in sorted(family.pipeline.components.items()):
        config = getattr(part, "config", {})
        options = config if isinstance(config, Mapping) else config.to_dict()
        # Private entries and versions say where the part came from, not what it does.
        kept = {key: options[key] for key in options if not key.startswith("_") and not key.endswith("version")}
        parts[name] = type(part).__name__, kept
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def class_pictures_to_draw(config: JobConfig, own: int) -> int:
    """How many class pictures the base has to draw."""
    folder = Path(config.class_data_dir or Path(config.output_dir) / CLASS_IMAGES)
    return 0 if own else config.num_class_images - count_drawn(folder, config.num_class_images)


def class_posterior(config: JobConfig, base: Family, output: Path) -> Posterior:
    """Return the latents of the `class_pictures`."""
    return encode_images(base, class_pictures(config, base, output), batch_size=config.sample_batch_size)


def class_pictures(config: JobConfig, base: Family, output: Path) -> Tensor:
    """Return the class pictures, `[N, 3, R, R]` in [-1, 1]. Missing pictures are drawn by the base model first.

    Args:
        config: options that say how many class pictures there are, and how they are drawn.
        output: the output folder. The pictures are kept there, unless `config.class_data_dir` names another folder.
    """
    paths = class_images(config, base).ensure(
        base,
        Path(config.class_data_dir) if config.class_data_dir else output / CLASS_IMAGES,
        config.num_class_images,
        batch_size=config.sample_batch_size,
        replace=config.class_data_dir is None,  # outdated pictures are deleted only in the output folder
    )
    return load_images(paths, config.resolution)
