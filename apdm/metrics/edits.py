"""How an edited picture relates to its photo and to what was asked, beside the likeness of the face."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from apdm.core.devices import to_float64
from apdm.core.pictures import to_array
from apdm.metrics.judges import Judges
from apdm.metrics.perception import lpips


@torch.no_grad()
def edit_quality(
    judges: Judges, images: Tensor, photos: Tensor, prompts: Sequence[str], sources: Sequence[str]
) -> dict[str, float | None]:
    """Compare edited pictures with the photos that they were made from.

    Args:
        judges: the networks for whole pictures.
        images: B edited pictures, `[B, 3, H, W]` in [0, 1].
        photos: the photo of each, `[B, 3, H, W]` in [0, 1].
        prompts: what was asked of each.
        sources: what each photo shows.

    Returns:
        "edit_similarity", the mean cosine of the features of picture and photo; "edit_lpips", the mean LPIPS between
        them, 0 for an unchanged photo; and "edit_direction", see `direction`. One without a network is None.
    """
    drawn, known = judges.whole_features(images), judges.whole_features(photos)
    similarity = None
    if drawn is not None and known is not None:
        similarity = cosine_similarity(to_float64(drawn), to_float64(known)).mean()
    distances = [lpips(to_array(photo), to_array(image)) for photo, image in zip(photos, images, strict=True)]
    seen = [distance for distance in distances if distance is not None]
    return {
        "edit_similarity": None if similarity is None else similarity.item(),
        "edit_lpips": fmean(seen) if seen else None,
        "edit_direction": direction(judges.clip, images, photos, prompts, sources),
    }


@torch.no_grad()
def direction(
    clip: Any, images: Tensor, photos: Tensor, prompts: Sequence[str], sources: Sequence[str]
) -> float | None:
    """CLIP's directional similarity (Gal et al. 2022): whether a picture changed as the words did.

    It is the cosine between E(picture) - E(photo) and T(prompt) - T(source), with unit vectors E and T of pictures and
    texts, averaged over the pairs whose two texts differ.

    Args:
        clip: a network with `pictures` and `texts`, such as `ClipModel`; None without one.
        images, photos, prompts, sources: as for `edit_quality`.

    Returns:
        The mean, in [-1, 1]; None without such a network, or if prompt and source are the same everywhere.
    """
    places = [place for place, (prompt, source) in enumerate(zip(prompts, sources, strict=True)) if prompt != source]
    if not places or not hasattr(clip, "texts"):
        return None
    said = clip.texts([prompts[place] for place in places]) - clip.texts([sources[place] for place in places])
    changed = clip.pictures(images[places]) - clip.pictures(photos[places])
    return cosine_similarity(to_float64(changed), to_float64(said)).mean().item()
