"""Measures the match thresholds of encoders that come without one, on the photos of the audit."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from torch import Tensor

from apdm.audit.inputs.people import AuditSubjects
from apdm.core.logging import get_logger
from apdm.metrics.judges import Judges, LikenessEncoder
from apdm.metrics.objects import MIN_OWN, ObjectEncoder, measure_threshold

logger = get_logger(__name__)


def with_match_thresholds(judges: Judges, subjects: AuditSubjects, class_pictures: Tensor) -> Judges:
    """Return the judges with a threshold for every encoder.

    Args:
        class_pictures: class pictures [N, 3, H, W], uint8, of the base. They are used only if there are neither photos
            of strangers nor a second subject.
    """
    if not any(map(_lacks_threshold, judges.encoders)):
        return judges
    everybody = [*subjects.protected, *subjects.others]
    references = {one.id: judges.embed(one.references) for one in everybody}
    photos = {one.id: judges.embed(one.photos) for one in everybody}
    strangers = None if subjects.strangers is None else judges.embed(subjects.strangers)
    drawn = judges.embed(class_pictures) if strangers is None and len(everybody) == 1 else None

    def measured(encoder: LikenessEncoder) -> LikenessEncoder:
        if not _lacks_threshold(encoder):
            return encoder
        name = encoder.name
        threshold, how = measure_threshold(
            {subject: of[name] for subject, of in references.items()},
            {subject: of[name] for subject, of in photos.items()},
            None if strangers is None else strangers[name],
            None if drawn is None else drawn[name],
        )
        logger.info("%s: the same subject from a cosine of %.3f (%s)", name, threshold, how)
        return replace(encoder, threshold=threshold, measured=how)

    return replace(judges, encoders=[measured(encoder) for encoder in judges.encoders])


def _lacks_threshold(encoder: LikenessEncoder) -> TypeGuard[ObjectEncoder]:
    return isinstance(encoder, ObjectEncoder) and encoder.measured is None


def warn_if_few_photos(subjects: AuditSubjects) -> None:
    """Log a warning if a threshold that will be measured on these photos will not be reliable."""
    everybody = [*subjects.protected, *subjects.others]
    own = sum(_comparisons(len(one.photos), len(one.references)) for one in everybody)
    if own < MIN_OWN:
        logger.warning(
            "the match threshold will rest on %d photos of the subjects, %d are needed: the audit will be unreliable; "
            "give more hold-out photos",
            own,
            MIN_OWN,
        )
    if subjects.strangers is None and len(everybody) == 1:
        logger.warning(
            "there is one subject and nobody else: the match threshold will be measured against the base's class "
            "pictures; photos of others of the same class, as strangers_data_dir, are better"
        )


def _comparisons(photos: int, references: int) -> int:
    return photos + (references if references > 1 else 0)
