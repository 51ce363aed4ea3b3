"""What the attacker does with the photos before training: fewer of them, changed, purified, mixed with clean ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from apdm.attacks import Material, Purifier
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.encoding import encode_images


@dataclass(frozen=True, kw_only=True)
class Photos(Staged):
    """`attack` with the first `num_photos` photos (None: all), after `purifier` (None: as they are)."""

    purifier: Purifier | None = None
    num_photos: int | None = None

    name: ClassVar[str] = "photos"

    @property
    def assumes(self) -> str:
        many = "as many photos as there are" if self.num_photos is None else f"{self.num_photos} photos"
        return f"{many}, {self.purifier.assumes}" if self.purifier else many

    def params(self) -> dict[str, object]:
        purifier = {"name": self.purifier.name, **self.purifier.params()} if self.purifier else None
        return {**super().params(), "purifier": purifier}

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        count = len(material.instance) if self.num_photos is None else self.num_photos
        if not 0 < count <= len(material.instance):
            raise UserError(f"the attack takes {count} photos and there are {len(material.instance)}: give it more")
        photos = None if material.photos is None else material.photos[:count]
        if self.purifier is None:
            return model, replace(material, instance=material.instance[torch.arange(count)], photos=photos)
        if photos is None:
            raise UserError(f"{self.purifier.name} works on photos, and there are only latents: give photos")
        photos = self.purifier(photos / 2 + 0.5, model, self.seed) * 2 - 1
        return model, replace(material, instance=encode_images(model, photos), photos=photos)


def mixed(clean: Tensor, protected: Tensor, num_clean: int) -> Tensor:
    """The photo set of an attacker who got hold of `num_clean` unprotected ones: `[N, 3, H, W]`, paired, clean first.

    Raises ValueError for sets of unlike shapes, or more clean ones than there are.
    """
    if clean.shape != protected.shape or not 0 <= num_clean <= len(clean):
        raise ValueError(f"{num_clean} clean of {tuple(clean.shape)} and {tuple(protected.shape)} cannot be mixed")
    return torch.cat([clean[:num_clean], protected[num_clean:]])
