"""What the jobs have in common before their long work starts: threads, the model, and class pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers

from apdm.config import HardenConfig, JobConfig
from apdm.core.errors import UserError
from apdm.core.files import model_hash
from apdm.data.class_images import ClassImages
from apdm.data.subjects import load_images
from apdm.families import Family, Posterior, load_family
from apdm.families.encoding import encode_images


def prepare_process(num_threads: int | None) -> None:
    """Use `num_threads`, by default this process's share of all cores, and leave the progress bar to us."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that the launcher started on this machine
    torch.set_num_threads(num_threads or max(1, cores // beside))
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def load_base(config: JobConfig) -> Family:
    """The pipeline of `config`. Raises UserError if it cannot be loaded or does not take the resolution."""
    base = load_family(
        config.pretrained_model_name_or_path,
        family=config.family,
        revision=config.revision,
        variant=config.variant,
        allow_pickle=config.allow_pickle,
        single_file_config=config.single_file_config,
    )
    check_resolution(base, config.resolution)
    return base


def load_models(config: HardenConfig) -> tuple[Family, Family]:
    """phi's pipeline and that whose denoiser is hardened: one and the same, unless `config` names a reference.

    Raises UserError as `load_base` does, and if the two denoisers are not of one architecture.
    """
    start = load_base(config)
    if config.reference_model_name_or_path is None:
        return start, start
    base = load_base(replace(config, pretrained_model_name_or_path=config.reference_model_name_or_path))
    ours, theirs = ({name: p.shape for name, p in family.denoiser.named_parameters()} for family in (start, base))
    if ours != theirs:
        raise UserError(
            f"{config.reference_model_name_or_path} is not the original of {config.pretrained_model_name_or_path}: "
            "their denoisers differ in names or shapes of weights; name the model that was hardened"
        )
    return base, start


def check_resolution(base: Family, resolution: int) -> None:
    """Raise UserError unless pictures of this side fit the model."""
    factor = base.size_multiple
    if resolution % factor:
        near = max(factor, round(resolution / factor) * factor)
        raise UserError(f"resolution {resolution} is no multiple of the model's {factor}; try {near}")


def class_posterior(config: JobConfig, base: Family, output: Path, *, show_progress: bool = True) -> Posterior:
    """Latents of the class pictures, drawn first where they are missing."""
    recipe = ClassImages(
        prompt=config.class_prompt,
        model=model_hash(base.source or Path(config.base)),
        seed=config.seed,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        resolution=config.resolution,
    )
    paths = recipe.ensure(
        base,
        Path(config.class_data_dir) if config.class_data_dir else output / "class_images",
        config.num_class_images,
        batch_size=config.sample_batch_size,
        replace=config.class_data_dir is None,  # in our own output folder
        show_progress=show_progress,
    )
    return encode_images(base, load_images(paths, config.resolution), batch_size=config.sample_batch_size)
