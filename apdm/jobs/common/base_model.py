"""The models of a job: the pipeline that it starts from, and the original of a pipeline that was hardened before."""

from __future__ import annotations

from dataclasses import replace

from apdm.config import HardenConfig, JobConfig
from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.families import Family, load_family
from apdm.families.load import variant_of_each

logger = get_logger(__name__)

TOO_LARGE = 4  # times the side that the model was made for; a smaller difference may be meant


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
