"""DLADiff's zero-shot layer (arXiv 2511.19910, section 3): face encoders no longer recognise the person.

A zero-shot adapter sees a photo through a face encoder's embedding of the aligned face. Here the photo itself is
changed. The alignment is a differentiable warp, so gradients reach the photo at its full resolution. The paper changes
the aligned crop and warps the result back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Module

from apdm.core.errors import UserError
from apdm.faces import Face, FaceDetector, FaceEncoder
from apdm.faces.align import jitter
from apdm.faces.person import PersonsFace, choose_faces, embed_face, embed_faces, on_own_scale
from apdm.image_layer.pgd import PGD
from apdm.image_layer.task import Transform
from apdm.image_layer.views import BLOCK, MARGIN

Seen = tuple[list[Face], dict[str, Tensor]]  # the faces of a photo, and {encoder: their embeddings [N, D]}
CHECK_EVERY = 20  # steps between two checks whether all photos have reached the goal


@dataclass(frozen=True)
class FaceModels:
    """The face detector and the face encoders that the zero-shot layer misleads.

    Raises:
        UserError: an encoder gives no gradients.
    """

    detector: FaceDetector
    encoders: Sequence[FaceEncoder]

    def __post_init__(self) -> None:
        for encoder in self.encoders:
            if not encoder.differentiable:
                raise UserError(
                    f"{encoder.name} gives no gradients, so it can judge photos but not be misled; "
                    "name the recogniser's own .onnx file in zero_shot.encoders"
                )

    def look(self, photo: Tensor, *, first: bool = False) -> Seen:
        """Return the faces in a photo `[3, H, W]` in [0, 1], and their embeddings.

        Raises:
            UserError: this is the first photo, and an encoder cannot be used; see `try_on`.
        """
        found = self.detector.detect(photo)
        if first and found:
            self.try_on(photo, found[0])
        return found, embed_faces(self.encoders, photo, found)

    def choose(self, seen: Sequence[Seen]) -> list[PersonsFace]:
        """Choose the person's face in each of a person's photos, given what `look` returned for each."""
        thresholds = {encoder.name: encoder.threshold for encoder in self.encoders}
        return choose_faces([faces for faces, _ in seen], [embeddings for _, embeddings in seen], thresholds)

    def try_on(self, photo: Tensor, face: Face) -> None:
        """Embed a face with every encoder, and check that the embedding has a gradient.

        Args:
            photo: a photo `[3, H, W]` in [0, 1].
            face: a face in it.

        Raises:
            UserError: an encoder fails, or its embedding or gradient cannot be used.
        """
        for encoder in self.encoders:
            pixels = photo.clone().requires_grad_()
            try:
                embedding = embed_face(encoder, pixels, face)
                embedding[0].backward()
            except UserError:
                raise
            except Exception as fault:  # a graph that does not fit makes the libraries raise anything
                raise UserError(
                    f"{encoder.name} fails on a photo ({type(fault).__name__}); use another encoder"
                ) from None
            gradient = pixels.grad
            if not embedding.isfinite().all() or gradient is None or not gradient.isfinite().all():
                raise UserError(f"{encoder.name} gives values that are no numbers for a photo; use another encoder")
            if not gradient.any():
                raise UserError(f"{encoder.name} gives no gradient for a photo, so it cannot be misled; use another")

    def to(self, device: torch.device | str) -> None:
        """Move the encoders to a device. The detector stays on the CPU."""
        for encoder in self.encoders:
            model = getattr(encoder, "model", None)
            if isinstance(model, Module):
                model.to(device)


@dataclass(frozen=True)
class Target:
    """One face of one photo, for one encoder.

    Attributes:
        face: where the face is in the clean photo.
        encoder: the face encoder.
        weight: the encoder's weight in the loss.
        clean: the embedding of the face in the clean photo, a unit vector `[D]`.
    """

    face: Face
    encoder: FaceEncoder
    weight: float
    clean: Tensor


class IdentityObjective:
    """The objective that makes faces in a subject's changed photos less similar to the faces in the clean photos.

    Args:
        originals: the clean photos, each `[3, H, W]` in [0, 1]. The detector looks for faces in them, as the user of an
            adapter would.
        faces: the detector and the encoders.
        generator: on the CPU, for jitter and transforms.
        chosen: the faces of each photo that are to be misled. None: all that the detector finds.
        weights: one weight for each encoder. Empty: 1 each.
        margin: how far below an encoder's threshold its cosine is pushed, in units of the distance between the
            threshold and 1.
        jitter: standard deviation of the shift of the landmarks, in units of the distance between the eyes.
        transform: what may happen to a photo before an adapter sees it. None: nothing.
    """

    def __init__(
        self,
        originals: Sequence[Tensor],
        faces: FaceModels,
        generator: torch.Generator,
        *,
        chosen: Sequence[Sequence[Face]] | None = None,
        weights: Sequence[float] = (),
        margin: float = 1.0,
        jitter: float = 0.02,
        transform: Transform | None = None,
    ) -> None:
        self.generator, self.margin, self.jitter, self.transform = generator, margin, jitter, transform
        if chosen is None:
            chosen = [faces.detector.detect(photo.cpu()) for photo in originals]  # detectors stay on the CPU
        self.targets = [
            [
                Target(face, encoder, weight, embed_face(encoder, photo, face))
                for face in photo_faces
                for encoder, weight in zip(faces.encoders, weights or [1.0] * len(faces.encoders), strict=True)
            ]
            for photo, photo_faces in zip(originals, chosen, strict=True)
        ]

    def ascend(self, pgd: PGD, max_steps: int) -> None:
        """Ascend until every cosine is below its encoder's threshold by the margin, or `max_steps` steps are done."""
        if not any(self.targets):
            return
        for done in range(0, max_steps, CHECK_EVERY):
            pgd.ascend(self.loss, min(CHECK_EVERY, max_steps - done))
            if self._reached(pgd.photos):
                break

    def loss(self, photos: list[Tensor], which: list[int]) -> Tensor:
        """The objective of `PGD.ascend` for B photos, `[B]`.

        It is minus the sum, over faces and encoders, of how far each cosine is above its goal. It is 0 if all goals are
        reached. Cosines are put on their encoder's own scale, where 1 is the same picture and 0 the threshold.
        Otherwise an encoder that gives strangers high cosines (dlib's: 0.8) would hardly count.
        """
        values = [self._photo_loss(photo, self.targets[i]) for photo, i in zip(photos, which, strict=True)]
        return torch.stack(values)

    def _photo_loss(self, photo: Tensor, targets: list[Target]) -> Tensor:
        if not targets:
            return 0.0 * photo.sum()
        parts = []
        for target in targets:
            seen, face = self._as_seen(photo, target.face)
            match = on_own_scale(embed_face(target.encoder, seen, face) @ target.clean, target.encoder.threshold)
            parts.append(-target.weight * (match + self.margin).clamp(min=0))
        return torch.stack(parts).sum()

    def _as_seen(self, photo: Tensor, face: Face) -> tuple[Tensor, Face]:
        """The photo and the face as an adapter's user may see them: landmarks shifted, and the photo transformed.

        Only the face and its surroundings are cut out and transformed.
        """
        face = replace(face, landmarks=jitter(face.landmarks, self.jitter, self.generator))
        if self.transform is None:
            return photo, face
        left, top, right, bottom = face.box
        margin = MARGIN * max(right - left, bottom - top)
        x, y = (max(0, int(start - margin) // BLOCK * BLOCK) for start in (left, top))
        cut = photo[:, y : int(bottom + margin) + 1, x : int(right + margin) + 1]
        corner = torch.tensor([x, y], dtype=face.landmarks.dtype, device=face.landmarks.device)
        return self.transform(cut[None], self.generator)[0], replace(face, landmarks=face.landmarks - corner)

    @torch.no_grad()
    def _reached(self, photos: list[Tensor]) -> bool:
        return all(
            self._photo_loss(photo, targets).item() == 0 for photo, targets in zip(photos, self.targets, strict=True)
        )
