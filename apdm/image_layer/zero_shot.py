"""DLADiff's second layer (arXiv 2511.19910, section 3): faces that identity encoders no longer take for the person's.

Zero-shot adapters see a photo through an identity encoder's embedding of the aligned face. Here the photo itself is the
variable and alignment is a differentiable warp: its adjoint brings the gradient back into the photo at full resolution,
where the paper perturbs the crop and warps the result back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apdm.config.image_layer import ZeroShotConfig
from apdm.faces import Face, FaceDetector, FaceEncoder
from apdm.faces.align import align, jitter
from apdm.image_layer.pgd import PGD
from apdm.image_layer.scene import Transform

CHECK_EVERY = 20  # steps between looks at whether all photos have reached the aim
MARGIN = 0.5  # of a face's box around it, what a transform gets to see beside the face


@dataclass(frozen=True)
class Target:
    """One face of one photo as one encoder sees it on the clean photo: a unit vector `[D]`."""

    face: Face
    encoder: FaceEncoder
    weight: float
    clean: Tensor


class ZeroShotLayer:
    """The faces of a subject's photos, and the cosines to be pushed down.

    Args:
        originals: photos [3, H, W] in [0, 1]; faces are looked for in these, as an adapter's user would find them.
    """

    def __init__(
        self,
        originals: Sequence[Tensor],
        detector: FaceDetector,
        encoders: Sequence[FaceEncoder],
        config: ZeroShotConfig,
        generator: torch.Generator,
        transform: Transform | None = None,
    ) -> None:
        self.config, self.generator, self.transform = config, generator, transform
        found = [detector.detect(photo.cpu()) for photo in originals]  # detectors stay on the CPU
        weights = config.weights or [1.0] * len(encoders)
        self.targets = [
            [
                Target(face, encoder, weight, embed_face(encoder, photo, face))
                for face in faces
                for encoder, weight in zip(encoders, weights, strict=True)
            ]
            for photo, faces in zip(originals, found, strict=True)
        ]

    def run(self, pgd: PGD) -> None:
        """Ascend until every cosine is below its encoder's threshold by the margin, or max_steps are done."""
        if not any(self.targets):
            return
        for done in range(0, self.config.max_steps, CHECK_EVERY):
            pgd.ascend(self.loss, min(CHECK_EVERY, self.config.max_steps - done))
            if self._reached(pgd.photos):
                break

    def loss(self, photos: list[Tensor], which: list[int]) -> Tensor:
        """How far each photo's cosines are below where they may stay, to be raised; 0 where all are, `[B]`.

        A cosine counts on its own encoder's scale, 1 for the same picture and 0 at the threshold: dlib's cosines of
        strangers are .8, and an average of raw cosines would see nothing but other encoders.
        """
        values = [self._loss(photo, self.targets[i]) for photo, i in zip(photos, which, strict=True)]
        return torch.stack(values)

    def _loss(self, photo: Tensor, targets: list[Target]) -> Tensor:
        if not targets:
            return 0.0 * photo.sum()
        parts = []
        for target in targets:
            seen, face = self._look(photo, target.face)
            match = on_own_scale(embed_face(target.encoder, seen, face) @ target.clean, target.encoder.threshold)
            parts.append(-target.weight * (match + self.config.margin).clamp(min=0))
        return torch.stack(parts).sum()

    def _look(self, photo: Tensor, face: Face) -> tuple[Tensor, Face]:
        """What an adapter's user may see: landmarks a little elsewhere, and perhaps a transformed photo.

        Only a cut around the face is transformed, and it begins where JPEG's blocks do.
        """
        face = replace(face, landmarks=jitter(face.landmarks, self.config.jitter, self.generator))
        if self.transform is None:
            return photo, face
        left, top, right, bottom = face.box
        margin = MARGIN * max(right - left, bottom - top)
        x, y = (max(0, int(start - margin) // 16 * 16) for start in (left, top))
        cut = photo[:, y : int(bottom + margin) + 1, x : int(right + margin) + 1]
        corner = torch.tensor([x, y], dtype=face.landmarks.dtype, device=face.landmarks.device)
        return self.transform(cut[None], self.generator)[0], replace(face, landmarks=face.landmarks - corner)

    @torch.no_grad()
    def _reached(self, photos: list[Tensor]) -> bool:
        return all(self._loss(photo, targets).item() == 0 for photo, targets in zip(photos, self.targets, strict=True))


def embed_face(encoder: FaceEncoder, photo: Tensor, face: Face) -> Tensor:
    """The unit vector `[D]` of a face in a photo [3, H, W] in [0, 1], differentiable in the photo."""
    return encoder.embed_crops(align(photo, face, encoder.size, encoder.template)[None])[0]


def on_own_scale(cosine: Tensor, threshold: float) -> Tensor:
    """A cosine in units of an encoder's own: 1 for the same picture, 0 at its threshold, below 0 for strangers."""
    return (cosine - threshold) / (1 - threshold)
