"""Clean photos among the protected ones: an attacker who also has photos of the person that nobody protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apdm.attacks.purify import OptionsAsParams
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Mix(OptionsAsParams):
    """Put originals in place of some protected photos. It is named like a purifier, but changes no photo itself.

    Attributes:
        clean: how many of the photos, from the first one on, are the originals. None: all but one.
    """

    clean: int | None = option(1, at_least=1)

    name: ClassVar[str] = "mix"
    assumes: ClassVar[str] = "some photos of the person that were never protected"

    def of(self, originals: Tensor, protected: Tensor) -> Tensor:
        """Return the attacker's photos `[N, 3, H, W]`, of originals and protected photos in the same order.

        Raises:
            UserError: no photo would be protected.
        """
        clean = self.number(len(originals))
        return torch.cat([originals[:clean], protected[clean:]])

    def number(self, photos: int) -> int:
        """How many of the photos are originals. Raises UserError if no photo would be protected."""
        clean = photos - 1 if self.clean is None else self.clean
        if clean >= photos:
            raise UserError(f"mix takes {clean} clean photos of {photos}, so none is protected; lower clean")
        return clean

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Return the photos as they are: `of` has mixed them."""
        return photos
