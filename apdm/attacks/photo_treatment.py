"""An attack that trains on fewer photos, or on photos that a purifier has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from apdm.attacks import Material, Purifier
from apdm.attacks.purify import passes_per_photo
from apdm.attacks.staged import Staged
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.core.pictures import to_unit
from apdm.families import Family
from apdm.families.encoding import encode_images


@dataclass(frozen=True, kw_only=True)
class PhotoTreatment(Staged):
    """Run `attack` on some of the photos, after `purifier` has changed them.

    Attributes:
        purifier: the purifier that changes the photos. None leaves them as they are.
        num_photos: how many photos the attack uses, from the first one on. None uses all of them.
    """

    purifier: Purifier | None = None
    num_photos: int | None = option(None, at_least=1)

    name: ClassVar[str] = "photos"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        number = "as many photos as there are" if self.num_photos is None else f"{self.num_photos} photos"
        return f"{number}, {self.purifier.assumes}" if self.purifier else number

    def own_passes(self, photos: float) -> float:
        """Forward passes of a purifier that draws; see `Staged.own_passes`."""
        return (photos if self.num_photos is None else self.num_photos) * passes_per_photo(self.purifier)

    def params(self) -> dict[str, object]:
        """The options of the inner attack, and the purifier's name and options."""
        purifier = {"name": self.purifier.name, **self.purifier.params()} if self.purifier else None
        return {**super().params(), "purifier": purifier}

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Choose the photos, purify them and encode them again.

        Raises:
            UserError: there are fewer photos than `num_photos`, or a purifier is given and the material has no photos.
        """
        count = len(material.instance) if self.num_photos is None else self.num_photos
        if not 0 < count <= len(material.instance):
            raise UserError(
                f"num_photos is {count}, but there are {len(material.instance)} photos; give the attack more photos"
            )
        photos = None if material.photos is None else material.photos[:count]
        material = replace(material, captions={name: each[:count] for name, each in material.captions.items()})
        if self.purifier is None:
            return model, replace(material, instance=material.instance[torch.arange(count)], photos=photos)
        if photos is None:
            raise UserError(f"the purifier {self.purifier.name} needs photos, but only latents were given; give photos")
        photos = self.purifier(to_unit(photos), model, self.seed) * 2 - 1
        return model, replace(material, instance=encode_images(model, photos), photos=photos)


def check_enough_photos(attack: Any, spec: str, counts: Mapping[str, int]) -> None:
    """Check that people have as many photos as an attack takes.

    Args:
        attack: the attack, with all stages.
        spec: names it, for the message.
        counts: {person: how many photos the attacker has}.

    Raises:
        UserError: somebody has fewer.
    """
    while isinstance(attack, Staged):
        taken = attack.num_photos if isinstance(attack, PhotoTreatment) else None
        if taken is not None and (short := [one for one, count in counts.items() if count < taken]):
            raise UserError(
                f'"{spec}" takes {taken} photos, and {short[0]} has {counts[short[0]]} for the attacker; lower '
                f"num_photos, or give more photos of {short[0]}"
            )
        attack = attack.attack
