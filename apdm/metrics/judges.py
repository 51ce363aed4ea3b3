"""The networks that look at the audit's pictures, in batches: likeness encoders, a face score, feature extractors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from apdm.config.judges import EXAMPLE
from apdm.core.devices import to_float64
from apdm.core.pictures import to_array, to_unit
from apdm.faces import FaceEncoder, FaceScore
from apdm.faces.described import NamedThreshold, describe
from apdm.faces.person import embed_person
from apdm.metrics.fidelity import Extractor
from apdm.metrics.identity import IdentityStatistics, identity_statistics, likeness
from apdm.metrics.objects import MeasuredThreshold, ObjectEncoder
from apdm.metrics.perception import brisque, brisque_missing

if TYPE_CHECKING:
    from apdm.faces.portrait import PortraitReader
    from apdm.metrics.extractors import ClipModel

NO_FEATURES = f"no network: give one as judge, such as {EXAMPLE}"  # why figures of whole pictures are not measured


class LikenessEncoder(Protocol):
    """Judges how alike two pictures are: a face encoder for people, `ObjectEncoder` for objects and animals."""

    @property
    def name(self) -> str:
        """What the results call the encoder."""
        ...

    @property
    def threshold(self) -> float:
        """The cosine from which two pictures show the same subject."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Embed whole pictures [B, 3, H, W] in [0, 1]. Returns [B, D]; only the direction counts."""
        ...


@dataclass(frozen=True)
class Features:
    """What the networks read from N pictures.

    Attributes:
        embeddings: {encoder: embeddings [N, D]}.
        face_scores: [N]; the higher, the surer the network is that the picture shows a face. None if faces were not
            looked for.
        detected: [N] bool, whether likeness can be read: the face score reaches its threshold, or there is none.
        extracted: [N, F] features for distances between sets of pictures; None without a network for them.
        whole: [N, G] features for the likeness of whole pictures; None without a network for them.
    """

    embeddings: dict[str, Tensor]
    face_scores: Tensor | None
    detected: Tensor
    extracted: Tensor | None
    whole: Tensor | None

    def part(self, start: int, stop: int) -> Features:
        """What was read from the pictures `start` to `stop`, without the latter."""
        chosen = slice(start, stop)
        return Features(
            {name: embeddings[chosen] for name, embeddings in self.embeddings.items()},
            None if self.face_scores is None else self.face_scores[chosen],
            self.detected[chosen],
            *(None if each is None else each[chosen] for each in (self.extracted, self.whole)),
        )


@dataclass(frozen=True, kw_only=True)
class JudgesDescription:
    """The names of the networks that gave the figures, for the results.

    Attributes:
        encoders: the likeness encoders with their match thresholds.
        face_score: the network that decides whether a picture shows a face; None if faces were not looked for.
        quality: {figure of a row's quality: the network or program that gave it, or the reason why nothing did}.
        clip: the network that gave the CLIP score; None if it was not measured.
        attributes: the network that read the attributes; None if they were not read.
        measured: {encoder: how its threshold was measured} of those that were measured on the photos of this audit.
    """

    encoders: list[NamedThreshold]
    face_score: NamedThreshold | None
    quality: dict[str, str]
    clip: str | None
    attributes: str | None
    measured: dict[str, MeasuredThreshold] | None = None


@dataclass(frozen=True)
class Judges:
    """The networks that judge the pictures.

    Photos in 8 bits may stand for `images` in [0, 1] in `features`, `detect`, `whole_features`, `embed` and
    `embed_seen`. They become floats batch by batch, because many of them may take most of the memory.

    Attributes:
        encoders: the encoders that judge likeness.
        face_score: decides whether a picture shows a face; None for subjects that have none.
        extractor: gives features for distances between sets of pictures; None leaves what needs them out.
        dino: gives features of whole pictures; None takes the extractor.
        clip: scores how well pictures fit their prompts; None leaves the CLIP score out.
        reader: reads attributes; None leaves the drift of the class out.
        batch_size: pictures that are looked at together.
    """

    encoders: Sequence[LikenessEncoder]
    face_score: FaceScore | None
    extractor: Extractor | None
    dino: Extractor | None = None
    clip: ClipModel | None = None
    reader: PortraitReader | None = None
    batch_size: int = 32

    @property
    def names(self) -> list[str]:
        """The names of the likeness encoders."""
        return [encoder.name for encoder in self.encoders]

    @property
    def face_encoders(self) -> list[FaceEncoder]:
        """The encoders that look for faces; empty for subjects that have none."""
        return [] if self.face_score is None else cast(list[FaceEncoder], list(self.encoders))

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Run all networks on `images` [N, 3, H, W] in [0, 1]."""
        scores, detected = self.detect(images)
        extracted = self._extract(self.extractor, images)
        whole = extracted if self.dino in (None, self.extractor) else self.whole_features(images)
        return Features(self.embed(images), scores, detected, extracted, whole)

    @torch.no_grad()
    def detect(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Face scores [N] of `images` [N, 3, H, W] in [0, 1], and whether they show a face; see `Features`."""
        if self.face_score is None:
            return None, torch.ones(len(images), dtype=torch.bool)
        scores = torch.cat([self.face_score.score(chunk).cpu() for chunk in self._batches(images)])
        return scores, scores >= self.face_score.threshold

    @torch.no_grad()
    def whole_features(self, images: Tensor) -> Tensor | None:
        """Features [N, G] of whole pictures [N, 3, H, W] in [0, 1], for `similarity`; None without a network."""
        return self._extract(self.dino or self.extractor, images)

    def _batches(self, images: Tensor, places: Tensor | None = None) -> Iterator[Tensor]:
        """Yield parts of `images`, or of those at `places`, in [0, 1]. The latter are not copied all at once."""
        size = self.batch_size
        for chunk in images.split(size) if places is None else (images[part] for part in places.split(size)):
            yield chunk if chunk.is_floating_point() else to_unit(chunk)

    def _extract(self, extractor: Extractor | None, images: Tensor) -> Tensor | None:
        if extractor is None:
            return None
        return torch.cat([extractor(chunk).cpu() for chunk in self._batches(images)])

    @torch.no_grad()
    def embed(self, images: Tensor) -> dict[str, Tensor]:
        """{encoder: embeddings [N, D]} of `images` [N, 3, H, W] in [0, 1]."""
        return self._embed(self._batches(images))

    @torch.no_grad()
    def embed_seen(self, images: Tensor) -> dict[str, Tensor]:
        """As `embed`, of those pictures in which likeness can be read, see `Features.detected`."""
        return self._embed(self._batches(images, self.detect(images)[1].nonzero().flatten()))

    def _embed(self, chunks: Iterable[Tensor]) -> dict[str, Tensor]:
        found = [{e.name: e.embed(chunk).cpu() for e in self.encoders} for chunk in chunks]
        return {name: torch.cat([one[name] for one in found]) for name in self.names}

    @torch.no_grad()
    def embed_person(self, images: Tensor) -> dict[str, Tensor]:
        """Embed pictures [N, 3, H, W] that all show one subject, as `embed` does, but of several faces the person's.

        Pictures without a face are left out, unless all are.

        Returns:
            {encoder: embeddings [M, D]}, 0 < M <= N.
        """
        if not self.face_encoders:
            return self.embed(images)
        _, detected = self.detect(images)
        images = images[detected] if detected.any() else images
        return {e.name: embed_person(e, images, self.batch_size).cpu() for e in self.face_encoders}

    def scores(self, features: Features, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{encoder: likeness [N]} of the pictures to the person with these reference embeddings {encoder: [M, D]}."""
        return {name: likeness(features.embeddings[name], references[name]) for name in self.names}

    def identity(self, features: Features, references: Mapping[str, Tensor]) -> dict[str, IdentityStatistics]:
        """{encoder: identity statistics} of the pictures for the person with these reference embeddings."""
        scores = self.scores(features, references)
        faces = None if self.face_score is None else features.detected
        return {e.name: identity_statistics(scores[e.name], faces, e.threshold) for e in self.encoders}

    def similarity(self, features: Features, references: Tensor | None) -> float | None:
        """Mean cosine between the features of every picture and every reference [M, G] (DINO score, DreamBooth).

        The result is None without a network for such features.
        """
        if features.whole is None or references is None:
            return None
        return (normalize(to_float64(features.whole), dim=1) @ normalize(to_float64(references), dim=1).T).mean().item()

    def clip_score(self, images: Tensor, prompts: Sequence[str]) -> float | None:
        """Mean score of `images` [N, 3, H, W] in [0, 1] with their prompts.

        The result is None without a scorer, or if the score is not finite, which a broken model can cause.
        """
        if self.clip is None:
            return None
        size = self.batch_size
        chunks = [
            self.clip.score(part, prompts[i * size : (i + 1) * size]) for i, part in enumerate(images.split(size))
        ]
        mean = to_float64(torch.cat(chunks)).mean().item()
        return mean if math.isfinite(mean) else None

    def brisque(self, images: Tensor) -> float | None:
        """Mean BRISQUE of `images` [N, 3, H, W] in [0, 1], higher is worse; None if no picture has a value."""
        values = [value for image in images if (value := brisque(to_array(image))) is not None]
        return fmean(values) if values else None

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """{attribute: index [N] of its value} in `images` [N, 3, H, W] in [0, 1]; empty without a reader."""
        return {} if self.reader is None else self.reader.read(images)

    def describe(self) -> JudgesDescription:
        """Names and thresholds of all networks, for the results."""
        face, whole = self.face_score, self.dino or self.extractor
        return JudgesDescription(
            encoders=[describe(encoder) for encoder in self.encoders],
            face_score=None if face is None else describe(face),
            quality=({} if face is None else {"face_score": face.name})
            | {
                "kernel_distance_to_class": NO_FEATURES if self.extractor is None else self.extractor.name,
                "similarity": NO_FEATURES if whole is None else whole.name,
                "brisque": brisque_missing() or "brisque",
            },
            clip=None if self.clip is None else self.clip.name,
            attributes=None if self.reader is None else self.reader.name,
            measured={e.name: e.measured for e in self.encoders if isinstance(e, ObjectEncoder) and e.measured} or None,
        )
