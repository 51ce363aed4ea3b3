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
from apdm.core.files import delete, write_json
from apdm.core.pictures import save_png, to_pil
from apdm.core.terminal import progress_bar

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
class PictureRecipe:
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

    def draw(
        self,
        family: PictureModel,
        folder: Path,
        count: int,
        *,
        batch_size: int,
        what: str,
        check: Callable[[Sequence[Path]], None] | None = None,
    ) -> list[Path]:
        """Return the first `count` pictures of a folder. Missing ones are drawn, and the recipe is written beside them.

        Args:
            folder: where the pictures are, or will be. It holds no pictures of another recipe.
            batch_size: how many pictures are drawn at once.
            what: what the pictures are, in words.
            check: is called with the files that are there already, and with those of each batch as soon as it is drawn,
                so that what it raises ends the drawing early.
        """
        files = picture_files(folder, count)
        missing = [i for i in range(count) if not files[i].exists()]
        if check is not None and len(missing) < count:
            check([file for i, file in enumerate(files) if i not in missing])
        if not missing:
            return files
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECIPE_FILE, asdict(self))
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
                    save_png(to_pil(image), files[i])
                if check is not None:
                    check([files[i] for i in chunk])
                bar.update(len(chunk))
        return files

    def delete_others(self, folder: Path) -> None:
        """Delete a folder of pictures that were drawn with another recipe."""
        if self.differences(folder):
            delete(folder)

    def differences(self, folder: Path) -> str:
        """Say how the pictures of a folder were drawn otherwise; an empty text if they were not."""
        recipe_file = folder / RECIPE_FILE
        if not recipe_file.exists():
            return ""
        try:
            stored = dict(json.loads(recipe_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return f"{RECIPE_FILE} cannot be read"
        here = asdict(self)
        if missing := sorted(here.keys() - stored.keys()):
            return f"by a version of this program that did not record {' and '.join(missing)}"
        differing = [name for name in here if stored[name] != here[name]]
        known = {"model": "another model", "configuration": "another configuration of the model"}
        return ", ".join(known.get(name, f"{name} {stored[name]} instead of {here[name]}") for name in differing)


def picture_files(folder: Path, count: int) -> list[Path]:
    """Return the files of the first `count` drawn pictures of a folder, whether they exist or not."""
    return [folder / f"{i:05d}.png" for i in range(count)]


def count_drawn(folder: Path, count: int) -> int:
    """Return how many of `count` drawn pictures a folder holds already."""
    return sum(file.exists() for file in picture_files(folder, count))
