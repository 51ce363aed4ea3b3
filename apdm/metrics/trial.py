"""A first try of every network that judges, on a few photos, before any long work.

A network that loads can still be unusable: its graph may fail on a photo, fold a batch into one row, give values that
are no numbers, or see the same in every photo.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.metrics.judges import Judges, LikenessEncoder

SAME = 1e-5  # largest difference between outputs that count as equal


def try_judges(judges: Judges, photos: Tensor) -> None:
    """Run every judge on photos, and check what comes out.

    Args:
        photos: `[N, 3, R, R]` in [0, 1].

    Raises:
        UserError: a network fails, or its output has another shape than it should, holds values that are no numbers, or
            is the same for different photos.
    """
    for encoder in judges.encoders:
        try_encoder(encoder, photos)
    if (face := judges.face_score) is not None:
        _try(face.name, lambda: face.score(photos), photos, rows=False)
    for extractor in (judges.extractor, judges.dino):
        if extractor is not None:
            _try(extractor.name, partial(extractor, photos), photos)
    if (clip := judges.clip) is not None:
        _try(clip.name, lambda: clip.score(photos, ["a photo"] * len(photos)), photos, rows=False)


def try_encoder(encoder: LikenessEncoder, photos: Tensor) -> None:
    """Run an encoder on photos `[N, 3, R, R]` in [0, 1]. `try_judges` explains the errors."""
    _try(encoder.name, lambda: encoder.embed(photos), photos)


@torch.no_grad()
def _try(name: str, run: Callable[[], Tensor], photos: Tensor, *, rows: bool = True) -> None:
    """Check the output of a network: a row for each photo, or a number for each photo."""
    try:
        found = run()
    except UserError:
        raise
    except Exception as fault:  # a graph that does not fit makes the libraries raise anything
        raise UserError(f"{name} fails on a photo ({type(fault).__name__}); use another network") from None
    if found.ndim != 1 + rows or len(found) != len(photos) or (rows and found.shape[1] < 2):
        wanted = f"[{len(photos)}, features]" if rows else f"[{len(photos)}]"
        raise UserError(
            f"{name} gives {list(found.shape)} for {len(photos)} photos where {wanted} is needed; use another network"
        )
    if not found.isfinite().all():
        raise UserError(f"{name} gives values that are no numbers or infinite for a photo; use another copy of it")
    if rows and _differ(photos) and not _differ(found):
        raise UserError(f"{name} gives the same for different photos, so it can judge nothing; use another network")


def _differ(values: Tensor) -> bool:
    return bool(((values - values[:1]).abs() > SAME).any())
