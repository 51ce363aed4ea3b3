"""Class pictures x^pr: what the class looked like before hardening, drawn once by the base model and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.files import delete, write_text
from apdm.core.pictures import save_png, to_pil
from apdm.core.terminal import progress_bar
from apdm.data.subjects import list_images

ORIGIN = "made_by_apdm.json"


class DrawsPictures(Protocol):
    """What draws the pictures: a model family, see `apdm.families`."""

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
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """How class pictures are drawn; picture i depends on this and on `seed + i` alone.

    model: hash of the base model, kept beside the pictures so that those of another model are never taken for its own.
    """

    prompt: str
    model: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    resolution: int

    def ensure(
        self,
        family: DrawsPictures,
        folder: Path,
        count: int,
        *,
        batch_size: int,
        replace: bool = False,
        show_progress: bool = True,
    ) -> list[Path]:
        """The first `count` pictures of `folder`, sorted; missing ones are drawn.

        A folder of the user's own pictures is taken as it is, however many they are. `replace` draws anew what was
        drawn by another model or with other settings.

        Raises:
            UserError: such pictures are there and `replace` is off.
        """
        facts = asdict(self)
        present = list_images(folder) if folder.is_dir() else []
        origin = folder / ORIGIN
        if present and not origin.exists():
            return present[:count]
        if present and json.loads(origin.read_text()) != facts:
            if replace:
                delete(folder)
                return self.ensure(family, folder, count, batch_size=batch_size, show_progress=show_progress)
            raise UserError(
                f"{folder} holds class pictures of another model, prompt or seed; "
                "remove the folder or choose another class_data_dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(origin, json.dumps(facts, indent=1) + "\n")
        missing = [i for i in range(count) if not (folder / _name(i)).exists()]
        shown = show_progress and bool(missing)
        bar = progress_bar(total=len(missing), desc="class pictures", unit="picture", shown=shown)
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
        bar.close()
        return [folder / _name(i) for i in range(count)]


def _name(index: int) -> str:
    return f"{index:05d}.png"
