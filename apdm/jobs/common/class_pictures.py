"""The class pictures of a job: a folder of the user's own, or pictures that the original model draws.

Prior preservation trains on them: x^pr in the paper. `apdm.data.class_images` knows such a folder; this file makes it
from the options. An audit draws class pictures of its own for the attackers (`apdm.jobs.auditing.run`), and partners
of photos are drawn alike (`apdm.jobs.hardening.partners`); both use `picture_recipe` with other seeds.
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torch import Tensor

from apdm.config import AuditingConfig, JobConfig
from apdm.core.errors import UserError
from apdm.core.files import model_hash
from apdm.core.logging import get_logger
from apdm.data.class_images import ensure_class_images, own_class_images
from apdm.data.drawn_pictures import PictureRecipe, count_drawn
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import load_images
from apdm.export.layout import CLASS_IMAGES
from apdm.families import Family, Posterior
from apdm.families.configuration import configuration_hash
from apdm.families.encoding import encode_images

logger = get_logger(__name__)


def load_own_class_pictures(config: JobConfig, base: Family) -> list[PhotoSet]:
    """Check the folder of class pictures before any long work. Nothing is written.

    Returns:
        The pictures of the user's own, to be compared with the subjects' photos, in a list of one. It is empty if the
        base model draws the class pictures.

    Raises:
        UserError: the folder cannot be used, see `own_class_images`, or holds the output folder.
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
    """Return the files of the class pictures of the user's own. Raises UserError as `load_own_class_pictures`."""
    if config.class_data_dir is None:
        return []
    folder = Path(config.class_data_dir)
    if Path(os.path.realpath(config.output_dir)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"output_dir {config.output_dir} lies in class_data_dir {folder}; give the class pictures another folder"
        )
    return own_class_images(picture_recipe(config, base), folder, replace=False)[: config.num_class_images]


def _shorter_side(picture: Path) -> int:
    with Image.open(picture) as image:
        return min(image.size)


def class_pictures_to_draw(config: JobConfig, own: int) -> int:
    """How many class pictures the base has to draw, if the user has `own` pictures."""
    return 0 if own else config.num_class_images - count_drawn(_folder(config), config.num_class_images)


def class_posterior(config: JobConfig, base: Family) -> Posterior:
    """Return the latents of the `class_pictures`."""
    return encode_images(base, class_pictures(config, base), batch_size=config.sample_batch_size)


def class_pictures(config: JobConfig, base: Family) -> Tensor:
    """Return the class pictures, `[N, 3, R, R]`, uint8. Missing pictures are drawn by the base model first."""
    paths = ensure_class_images(
        picture_recipe(config, base),
        base,
        _folder(config),
        config.num_class_images,
        batch_size=config.sample_batch_size,
        replace=config.class_data_dir is None,  # outdated pictures are deleted only in the output folder
    )
    return load_images(paths, config.resolution)


def _folder(config: JobConfig) -> Path:
    """The folder of the class pictures: the user's, or one in the output folder."""
    return Path(config.class_data_dir or Path(config.output_dir) / CLASS_IMAGES)


def picture_recipe(config: JobConfig | AuditingConfig, base: Family) -> PictureRecipe:
    """Return how the base model draws the class pictures of a job."""
    return PictureRecipe(
        prompt=config.class_prompt,
        model=model_hash(base.origin or Path(str(config.base))),
        variant=config.variant,
        configuration=configuration_hash(base),
        seed=config.seed,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        resolution=config.resolution,
    )
