"""A folder of class pictures: of the user's own, or drawn by the original model."""

from __future__ import annotations

import os
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import MARKER
from apdm.core.lock import locked
from apdm.data.drawn_pictures import DRAWN, RECIPE_FILE, PictureModel, PictureRecipe, count_drawn, picture_files
from apdm.data.photo_files import list_folder, walk
from apdm.data.subjects import require_read


def ensure_class_images(
    recipe: PictureRecipe, family: PictureModel, folder: Path, count: int, *, batch_size: int, replace: bool = False
) -> list[Path]:
    """Return `count` class pictures of a folder, sorted by name; missing ones are drawn first.

    A folder with pictures of the user's own is used as it is, even if it has fewer than `count`.

    Args:
        recipe: how missing pictures are drawn.
        folder: where the pictures are, or will be.
        batch_size: how many pictures are drawn at once.
        replace: if the folder holds pictures that were drawn with another recipe, delete them and draw new ones.

    Raises:
        UserError: as in `own_class_images`.
    """
    if own := own_class_images(recipe, folder, replace=replace):
        return own[:count]
    if replace:
        recipe.delete_others(folder)
    if count_drawn(folder, count) == count:
        return picture_files(folder, count)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, waiting=f"waiting for another run that draws class pictures in {folder}"):
        own_class_images(recipe, folder, replace=False)  # the other run may have drawn other pictures
        return recipe.draw(family, folder, count, batch_size=batch_size, what="class pictures")


def own_class_images(recipe: PictureRecipe, folder: Path, *, replace: bool) -> list[Path]:
    """Return the pictures of the user's own in a folder, sorted; an empty list if pictures are drawn there.

    The user's pictures lie directly in the folder, or in folders inside it, such as kohya's `10_person/`. Nothing is
    written.

    Args:
        recipe: how pictures would be drawn in this folder.
        folder: where class pictures are, or will be.
        replace: as in `ensure_class_images`.

    Raises:
        UserError: the folder holds something else than pictures, pictures in two places, or pictures that were drawn
            with another recipe, and `replace` is false.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"class_data_dir {folder} is a file; give the folder of the class pictures, or a new one")
    if os.path.exists(folder / MARKER):
        raise UserError(f"class_data_dir {folder} is the output folder of a run; give the class pictures another")
    top, inside = list_folder(folder), _pictures_inside(folder)
    require_read(top)
    if (folder / RECIPE_FILE).exists():
        if strange := [*(file for file in top.photos if not DRAWN.fullmatch(file.name)), *inside]:
            raise UserError(
                f"{strange[0]} lies among class pictures that this program drew; move it elsewhere, or give your "
                "own pictures a folder of their own"
            )
        if top.photos and not replace and (differences := recipe.differences(folder)):
            raise UserError(
                f"{folder} holds class pictures that were drawn otherwise ({differences}); remove the folder or "
                "choose another class_data_dir"
            )
        return []
    if top.photos and inside:
        raise UserError(
            f"{folder} holds class pictures, and {inside[0].parent} does too; leave them in one of the two places"
        )
    if not (top.photos or inside) and top.others:
        raise UserError(
            f"{folder} holds {top.others[0].name} and no class picture; put pictures there, or choose an empty "
            "folder or a new one to have them drawn"
        )
    return top.photos or inside


def _pictures_inside(folder: Path) -> list[Path]:
    """Return the pictures in all folders below a folder, sorted by path; hidden folders are left out.

    Raises:
        UserError: this program drew or wrote pictures in one of these folders.
    """
    pictures = []
    for place, listing in walk(folder):
        for inner in listing.folders:
            if any(os.path.exists(inner / name) for name in (RECIPE_FILE, MARKER)):
                raise UserError(
                    f"{inner}, inside class_data_dir {folder}, was made by this program; give another folder"
                )
        pictures += listing.require_read().photos if place != folder else []
    return pictures
