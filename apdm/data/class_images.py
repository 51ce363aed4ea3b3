"""Class pictures (x^pr in the paper): pictures of the class that the original model draws once, and that are kept.

Prior preservation trains on these pictures, so that a model goes on drawing the class as before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from apdm.core.disk import picture_size, require_disk
from apdm.core.errors import UserError
from apdm.core.files import delete, write_text
from apdm.core.lock import locked
from apdm.core.pictures import save_png, to_pil
from apdm.core.terminal import progress_bar
from apdm.data.subjects import list_images

RECIPE_FILE = "made_by_apdm.json"  # stored beside drawn pictures; it says how they were drawn


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
    """How class pictures are drawn. Picture i depends on this recipe and on `seed + i`, and on nothing else.

    Attributes:
        prompt: the class prompt.
        model: hash of the model that draws. It is stored beside the pictures, so that pictures of another model are
            never used by mistake.
        seed: seed of the first picture.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        resolution: side of the pictures in pixels.
    """

    prompt: str
    model: str
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
        show_progress: bool = True,
    ) -> list[Path]:
        """Return `count` class pictures of a folder, sorted by name; missing ones are drawn first.

        A folder with pictures of the user's own is used as it is, even if it has fewer than `count`.

        Args:
            family: the model that draws.
            folder: where the pictures are, or will be.
            count: how many pictures to return.
            batch_size: how many pictures are drawn at once.
            replace: if the folder holds pictures that were drawn with another recipe, delete them and draw new ones.
            show_progress: show a progress bar.

        Raises:
            UserError: the folder holds pictures that were drawn with another recipe, and `replace` is false.
        """
        recipe = asdict(self)
        present = list_images(folder) if folder.is_dir() else []
        recipe_file = folder / RECIPE_FILE
        if present and not recipe_file.exists():
            return present[:count]
        if present and replace and json.loads(recipe_file.read_text()) != recipe:
            delete(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_recipe(folder)
        if self._missing(folder, count):
            with locked(folder, waiting=f"waiting for another run that draws class pictures in {folder}"):
                self._check_recipe(folder)  # of the other run
                write_text(recipe_file, json.dumps(recipe, indent=1) + "\n")
                self._draw(family, folder, count, batch_size=batch_size, show_progress=show_progress)
        return [folder / _name(i) for i in range(count)]

    def _check_recipe(self, folder: Path) -> None:
        """Raise UserError if the folder holds pictures that were drawn with another recipe."""
        recipe_file = folder / RECIPE_FILE
        if recipe_file.exists() and list_images(folder) and json.loads(recipe_file.read_text()) != asdict(self):
            raise UserError(
                f"{folder} holds class pictures of another model, prompt or seed; "
                "remove the folder or choose another class_data_dir"
            )

    def _missing(self, folder: Path, count: int) -> list[int]:
        return [i for i in range(count) if not (folder / _name(i)).exists()]

    def _draw(self, family: PictureModel, folder: Path, count: int, *, batch_size: int, show_progress: bool) -> None:
        """Draw the missing ones of `count` pictures."""
        missing = self._missing(folder, count)  # another run may have drawn some meanwhile
        require_disk(folder, len(missing) * picture_size(self.resolution**2), f"{len(missing)} class pictures")
        with progress_bar(total=len(missing), desc="class pictures", unit="picture", shown=show_progress) as bar:
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
                bar.update(len(chunk))


def _name(index: int) -> str:
    return f"{index:05d}.png"
