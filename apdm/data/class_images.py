"""Pictures that the original model draws once, and that are kept: class pictures, and the partners of photos.

Class pictures are x^pr in the paper. Prior preservation trains on them, so that a model goes on drawing the class as
before. A partner is x^+, the picture that the protected model is trained to prefer to a photo x^-.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from apdm.core.disk import picture_size, require_disk
from apdm.core.errors import UserError
from apdm.core.files import MARKER, delete, write_json
from apdm.core.lock import locked
from apdm.core.pictures import save_png, to_pil
from apdm.core.terminal import progress_bar
from apdm.data.photo_files import list_folder, walk
from apdm.data.subjects import require_read

WHAT = "class pictures"
RECIPE_FILE = "made_by_apdm.json"  # stored beside drawn pictures; it says how they were drawn
DRAWN = re.compile(r"\d{5,}\.png")  # the names of drawn pictures


class PictureModel(Protocol):
    """The part of a model family (`apdm.families.Family`) that draws pictures."""

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        height: int | None,
        width: int | None,
        batch_size: int,
    ) -> Tensor:
        """Return one picture for each prompt and seed, `[N, 3, height, width]` in [0, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """How pictures are drawn. Picture i depends on this recipe and on `seed + i`, and on nothing else.

    The recipe is stored beside the pictures, so that pictures of another recipe are never used by mistake.

    Attributes:
        prompt: the prompt of all pictures.
        model: hash of the weights of the model that draws.
        variant: which of these weights were loaded; None for the files without a suffix.
        configuration: hash of the configurations of the model's parts, such as the sampler's.
        seed: seed of the first picture.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        resolution: side of the pictures in pixels.
    """

    prompt: str
    model: str
    variant: str | None
    configuration: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    resolution: int

    def ensure(
        self,
        family: PictureModel,
        folder: Path,
        count: int,
        *,
        batch_size: int,
        replace: bool = False,
    ) -> list[Path]:
        """Return `count` class pictures of a folder, sorted by name; missing ones are drawn first.

        A folder with pictures of the user's own is used as it is, even if it has fewer than `count`.

        Args:
            folder: where the pictures are, or will be.
            batch_size: how many pictures are drawn at once.
            replace: if the folder holds pictures that were drawn with another recipe, delete them and draw new ones.

        Raises:
            UserError: as in `own_pictures`.
        """
        if own := self.own_pictures(folder, replace=replace):
            return own[:count]
        if replace:
            self._delete_others(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._missing(folder, count):
            with locked(folder, waiting=f"waiting for another run that draws class pictures in {folder}"):
                self.own_pictures(folder, replace=False)  # the other run may have drawn other pictures
                self._draw(family, folder, count, batch_size=batch_size, what=WHAT)
        return [folder / _name(i) for i in range(count)]

    def draw(
        self,
        family: PictureModel,
        folder: Path,
        count: int,
        *,
        batch_size: int,
        what: str,
        check: Callable[[Sequence[Path]], None],
    ) -> list[Path]:
        """Return `count` pictures of a folder that only this program uses; missing ones are drawn first.

        Args:
            folder: where the pictures are, or will be. Those that were drawn with another recipe are deleted.
            batch_size: how many pictures are drawn at once.
            what: what the pictures are, in words.
            check: is called with the files that are there already, and with those of each batch as soon as it is drawn,
                so that what it raises ends the drawing early.
        """
        self._delete_others(folder)
        folder.mkdir(parents=True, exist_ok=True)
        missing = self._missing(folder, count)
        if there := [folder / _name(i) for i in range(count) if i not in missing]:
            check(there)
        if missing:
            self._draw(family, folder, count, batch_size=batch_size, what=what, check=check)
        return [folder / _name(i) for i in range(count)]

    def _delete_others(self, folder: Path) -> None:
        """Delete a folder of pictures that were drawn with another recipe."""
        recipe_file = folder / RECIPE_FILE
        if recipe_file.exists() and self._differences(recipe_file):
            delete(folder)

    def _missing(self, folder: Path, count: int) -> list[int]:
        return [i for i in range(count) if not (folder / _name(i)).exists()]

    def _draw(
        self,
        family: PictureModel,
        folder: Path,
        count: int,
        *,
        batch_size: int,
        what: str,
        check: Callable[[Sequence[Path]], None] | None = None,
    ) -> None:
        """Draw the missing ones of `count` pictures, after the recipe is written beside them."""
        write_json(folder / RECIPE_FILE, asdict(self))
        missing = self._missing(folder, count)  # another run may have drawn some meanwhile
        require_disk(folder, len(missing) * picture_size(self.resolution**2), f"{len(missing)} {what}")
        with progress_bar(total=len(missing), desc=what, unit="picture") as bar:
            for start in range(0, len(missing), batch_size):
                chunk = missing[start : start + batch_size]
                images = family.sample(
                    [self.prompt] * len(chunk),
                    seed=[self.seed + i for i in chunk],
                    num_inference_steps=self.num_inference_steps,
                    guidance_scale=self.guidance_scale,
                    height=self.resolution,
                    width=self.resolution,
                    batch_size=batch_size,
                )
                for i, image in zip(chunk, images, strict=True):
                    save_png(to_pil(image), folder / _name(i))
                if check is not None:
                    check([folder / _name(i) for i in chunk])
                bar.update(len(chunk))

    def own_pictures(self, folder: Path, *, replace: bool) -> list[Path]:
        """Return the pictures of the user's own in a folder, sorted; an empty list if pictures are drawn there.

        The user's pictures lie directly in the folder, or in folders inside it, such as kohya's `10_person/`. Nothing
        is written.

        Args:
            folder: where class pictures are, or will be.
            replace: as in `ensure`.

        Raises:
            UserError: the folder holds something else than pictures, pictures in two places, or pictures that were
                drawn with another recipe, and `replace` is false.
        """
        if not folder.exists():
            return []
        if not folder.is_dir():
            raise UserError(f"class_data_dir {folder} is a file; give the folder of the class pictures, or a new one")
        if (folder / MARKER).exists():
            raise UserError(f"class_data_dir {folder} is the output folder of a run; give the class pictures another")
        top, inside = list_folder(folder), _pictures_inside(folder)
        require_read(top)
        directly = top.photos
        recipe_file = folder / RECIPE_FILE
        if recipe_file.exists():
            directly = [file for file in directly if not DRAWN.fullmatch(file.name)]
            if strange := [*directly, *inside]:
                raise UserError(
                    f"{strange[0]} lies among class pictures that this program drew; move it elsewhere, or give your "
                    "own pictures a folder of their own"
                )
            if top.photos and not replace and (differences := self._differences(recipe_file)):
                raise UserError(
                    f"{folder} holds class pictures that were drawn otherwise ({differences}); remove the folder or "
                    "choose another class_data_dir"
                )
            return []
        if directly and inside:
            raise UserError(
                f"{folder} holds class pictures, and {inside[0].parent} does too; leave them in one of the two places"
            )
        if not (directly or inside) and top.others:
            raise UserError(
                f"{folder} holds {top.others[0].name} and no class picture; put pictures there, or choose an empty "
                "folder or a new one to have them drawn"
            )
        return directly or inside

    def _differences(self, recipe_file: Path) -> str:
        """Say how a stored recipe differs from this one; an empty text if it does not."""
        try:
            stored = dict(json.loads(recipe_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return f"{recipe_file.name} cannot be read"
        here = asdict(self)
        if missing := sorted(here.keys() - stored.keys()):
            return f"by a version of this program that did not record {' and '.join(missing)}"
        differing = [name for name in here if stored[name] != here[name]]
        known = {"model": "another model", "configuration": "another configuration of the model"}
        return ", ".join(known.get(name, f"{name} {stored[name]} instead of {here[name]}") for name in differing)


def count_drawn(folder: Path, count: int) -> int:
    """Return how many of `count` drawn class pictures a folder holds already."""
    return sum((folder / _name(i)).exists() for i in range(count))


def _pictures_inside(folder: Path) -> list[Path]:
    """Return the pictures in all folders below a folder, sorted by path; hidden folders are left out.

    Raises:
        UserError: this program drew or wrote pictures in one of these folders.
    """
    pictures = []
    for place, listing in walk(folder):
        for inner in listing.folders:
            if (inner / RECIPE_FILE).exists() or (inner / MARKER).exists():
                raise UserError(
                    f"{inner}, inside class_data_dir {folder}, was made by this program; give another folder"
                )
        pictures += listing.require_read().photos if place != folder else []
    return pictures


def _name(index: int) -> str:
    return f"{index:05d}.png"
