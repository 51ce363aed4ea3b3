"""The pairs of a hardening run: a protected photo x^- and its safe partner x^+, which the model may draw instead.

The paper pairs each protected photo with one fixed picture that the original model drew with the class prompt. Partners
of the user's own, in `<id>/safe/`, are taken in preference to drawn ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from apdm.config import HardenConfig
from apdm.core.errors import UserError
from apdm.data.photo_files import name_of
from apdm.data.separate_photos import PhotoSet, Role, find_copy
from apdm.data.subjects import SAFE, Subject, load_images
from apdm.export.layout import PARTNERS
from apdm.families import Family
from apdm.jobs.common.class_pictures import picture_recipe

FIRST_SEED = 2**40  # class pictures and attacks have seeds below 2**33, so no partner is one of their pictures


def require_partners(subjects: Sequence[Subject], folder: str) -> None:
    """Raise UserError if one of the subjects in a folder has no partners."""
    if lacking := [subject.id for subject in subjects if subject.safe is None]:
        raise UserError(
            f"pairs is folder, and {lacking[0]} in {folder} has no folder {SAFE}/: add one with a partner for each "
            "photo, or give --pairs drawn to have partners drawn"
        )


def draw_partners(
    config: HardenConfig, base: Family, photos: Sequence[Mapping[str, Tensor]], sets: Sequence[PhotoSet]
) -> list[dict[str, Tensor]]:
    """Draw one partner for each photo, or find those that an earlier run in this output folder drew.

    Partner i is a function of the model, the class prompt, the sampling options and i. It stays the same when a run is
    resumed.

    Args:
        photos: {subject id: photos `[N, 3, R, R]`} of the people without partners, by group.
        sets: the protected photos, to which the partners are compared.

    Returns:
        {subject id: partners `[N, 3, R, R]`, uint8}, by group.

    Raises:
        UserError: the model drew one of the protected photos.
    """
    total = sum(len(images) for group in photos for images in group.values())
    if not total:
        return [{} for _ in photos]
    folder = Path(config.output_dir) / PARTNERS
    recipe = replace(picture_recipe(config, base), seed=FIRST_SEED + config.seed)

    def refuse_copies(files: Sequence[Path]) -> None:
        drawn = PhotoSet.of(Role.SAFE, str(folder), files, load_images(files, config.resolution))
        for protected in sets:
            if copies := find_copy(protected, drawn):
                raise UserError(
                    f"the base model knows {name_of(copies[0])} by heart: it drew it as partner "
                    f"{int(copies[1].stem) + 1} of {total}, {copies[1]}; give this person partners of your own in "
                    # A seed less far away would draw the same picture as another partner.
                    f"{SAFE}/, or --seed {config.seed + total}, with which all partners are drawn again"
                )

    what = "partners of photos"
    recipe.delete_others(folder)
    files = recipe.draw(base, folder, total, batch_size=config.sample_batch_size, what=what, check=refuse_copies)
    partners = load_images(files, config.resolution)
    parts = iter(partners.split([len(images) for group in photos for images in group.values()]))
    return [{person: next(parts) for person in group} for group in photos]
