"""Which face of a photo is the person's.

A photo with one face shows the person. In a photo with several faces, the person's face is the one that is most like
the faces in the person's other photos. The rule, for each photo with several faces:

* The person's face is known from the photos with a single face. Where there are none, it is the face that comes again
  in the other photos, unless two people come again.
* A face is the person's if every encoder takes it for the known face, and no encoder another face in the photo.
* Otherwise it is *unclear* which face is the person's: none, or more than one, is like the known face.

"Takes for" is measured by the mean cosine to the known faces, against the encoder's own threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from apdm.core.devices import to_float64
from apdm.faces.align import align
from apdm.faces.interfaces import Face, FaceEncoder

Reason = Literal["none", "only", "unlike", "alike", "unclear"]
FEW = 3  # photos with a single face from which one that is unlike the others is remarkable


@dataclass(frozen=True)
class PersonsFace:
    """What is known about the faces of one photo of a person.

    Attributes:
        faces: all faces, the largest first.
        index: which of them is the person's; the largest if that is unclear, None if there is none.
        reason: "none", there is no face; "only", there is one; "unlike", there is one, which is unlike those in the
            person's other photos; "alike", it is the one that is like those; "unclear", none or more than one is.
    """

    faces: list[Face]
    index: int | None
    reason: Reason

    @property
    def chosen(self) -> list[Face]:
        """The faces to protect: the person's, or all of them if it is unclear which that is."""
        if self.index is None:
            return []
        return self.faces if self.reason == "unclear" else [self.faces[self.index]]


def choose_faces(
    found: Sequence[list[Face]], embeddings: Sequence[Mapping[str, Tensor]], thresholds: Mapping[str, float]
) -> list[PersonsFace]:
    """Choose the person's face in each photo, by the rule at the top of this file.

    Args:
        found: the faces in each of a person's photos, the largest first.
        embeddings: for each photo, {encoder: unit vectors [faces, D]}; empty for a photo without faces.
        thresholds: {encoder: the cosine from which two faces are the same person's}.
    """
    photo = torch.tensor([place for place, faces in enumerate(found) for _ in faces], dtype=torch.long)
    if not len(photo):
        return [PersonsFace([], None, "none") for _ in found]
    alike = _likeness([own for own in embeddings if own], thresholds)
    known = _known(photo, alike.amin(dim=0))
    agreed, suspected = (_mean_to(each, known) for each in (alike.amin(dim=0), alike.amax(dim=0)))
    choices = []
    for place, faces in enumerate(found):
        here = photo == place
        choices.append(_choose(faces, agreed[here] >= 0, suspected[here] >= 0, sure=int(known.sum()) >= FEW))
    return choices


def on_own_scale(cosine: Tensor, threshold: float) -> Tensor:
    """A cosine on an encoder's own scale: 1 for the same picture, 0 at its threshold, negative for strangers."""
    return (cosine - threshold) / (1 - threshold)


def embed_face(encoder: FaceEncoder, photo: Tensor, face: Face) -> Tensor:
    """The embedding of a face in a photo, a unit vector `[D]`, differentiable in the photo `[3, H, W]` in [0, 1]."""
    return encoder.embed_crops(align(photo, face, encoder.size, encoder.template)[None])[0]


@torch.no_grad()
def embed_faces(encoders: Sequence[FaceEncoder], photo: Tensor, faces: Sequence[Face]) -> dict[str, Tensor]:
    """{encoder: unit vectors `[N, D]`} of N faces in a photo `[3, H, W]` in [0, 1]; empty if there are no faces."""
    if not faces:
        return {}
    return {e.name: torch.stack([embed_face(e, photo, face).cpu() for face in faces]) for e in encoders}


@torch.no_grad()
def embed_person(encoder: FaceEncoder, images: Tensor, batch_size: int = 32) -> Tensor:
    """Embed the one person whom all pictures show.

    It is `encoder.embed`, except for pictures with several faces, of which the person's is taken by the rule above.

    Args:
        images: whole pictures `[N, 3, H, W]` in [0, 1].
        batch_size: pictures that the encoder gets at once.

    Returns:
        Unit vectors `[N, D]`.
    """
    embeddings = torch.cat([encoder.embed(chunk) for chunk in images.split(batch_size)])
    if encoder.detector is None:
        return embeddings
    found = [encoder.detector.detect(image) for image in images]
    if all(len(faces) < 2 for faces in found):
        return embeddings
    own = [embed_faces([encoder], image, faces) for image, faces in zip(images, found, strict=True)]
    choices = choose_faces(found, own, {encoder.name: encoder.threshold})
    for place, choice in enumerate(choices):
        if choice.index:  # the largest face, 0, is in `embeddings`
            embeddings[place] = own[place][encoder.name][choice.index].to(embeddings)
    return embeddings


def _likeness(embeddings: Sequence[Mapping[str, Tensor]], thresholds: Mapping[str, float]) -> Tensor:
    """Return how alike all faces of all photos are, on each encoder's own scale: `[encoders, M, M]`, float64."""
    rows = []
    for encoder, threshold in thresholds.items():
        every = to_float64(torch.cat([own[encoder] for own in embeddings]))
        rows.append(on_own_scale(every @ every.T, threshold))
    return torch.stack(rows)


def _known(photo: Tensor, alike: Tensor) -> Tensor:
    """Return the faces that are known to be the person's, `[M]` bool.

    Args:
        photo: the photo of each of M faces, `[M]`.
        alike: how alike the faces are, `[M, M]`.
    """
    _, place, faces = photo.unique(return_inverse=True, return_counts=True)
    if len(faces) == 1:
        return torch.full_like(photo, bool(faces[0] == 1), dtype=torch.bool)
    # How like the most similar face of each photo, on average over the other photos: [M].
    best = alike.new_full((len(photo), len(faces)), -torch.inf)
    best = best.scatter_reduce(1, place.expand(len(photo), -1), alike, "amax")
    best[torch.arange(len(photo)), place] = 0.0
    support = best.sum(dim=1) / (len(faces) - 1)
    single = faces[place] == 1
    anchor = int(support.masked_fill(~single, -torch.inf).argmax() if single.any() else support.argmax())
    if single.any():
        return single & (alike[anchor] >= 0)
    rivals = (support >= 0) & (alike[anchor] < 0)
    known = torch.zeros_like(single)
    known[anchor] = not rivals.any()
    return known


def _mean_to(alike: Tensor, known: Tensor) -> Tensor:
    """Return how like the known faces each face is, `[M]`. A face is not compared with itself, but if it is alone."""
    others = known.repeat(len(alike), 1)
    if known.sum() > 1:
        others.fill_diagonal_(False)
    total = (alike * others).sum(dim=1)
    return torch.where(others.any(dim=1), total / others.sum(dim=1).clamp(min=1), -torch.inf)


def _choose(faces: list[Face], agreed: Tensor, suspected: Tensor, *, sure: bool) -> PersonsFace:
    """Choose the person's face in one photo.

    Args:
        faces: its faces.
        agreed: whether every encoder takes a face for the person's, `[faces]` bool.
        suspected: whether an encoder does.
        sure: whether enough faces are known to call another one unlike.
    """
    if not faces:
        return PersonsFace(faces, None, "none")
    if len(faces) == 1:
        return PersonsFace(faces, 0, "unlike" if sure and not suspected.any() else "only")
    if suspected.sum() != 1 or not agreed.equal(suspected):
        return PersonsFace(faces, 0, "unclear")
    return PersonsFace(faces, int(agreed.int().argmax()), "alike")
