"""The photos that are to be protected, and clean ones beside them: found, checked, and looked at for faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from apdm.config.groups.image_layer import ASPLConfig, CleanPhotosConfig
from apdm.core.errors import UserError
from apdm.core.files import sha256_file
from apdm.core.logging import get_logger
from apdm.core.terminal import count
from apdm.data.photo_files import name_of, name_some
from apdm.data.photo_sets import Chosen
from apdm.data.subjects import Subject, find_subjects
from apdm.faces.choice import require_faces
from apdm.faces.person import PersonsFace
from apdm.image_layer.photos import Format, Photo, PhotoFile, check_photos
from apdm.image_layer.zero_shot import FaceModels, Seen

logger = get_logger(__name__)


def checked_photos(subject: Subject, *, kind: Format, faces: FaceModels | None) -> tuple[list[PhotoFile], list[Seen]]:
    """Check all photos of a subject.

    Returns:
        Their sizes, and what the detector sees in them; nothing without `faces`.

    Raises:
        UserError: a photo cannot be used, an encoder cannot be used, or a face is seen in less than half of the photos.
    """
    seen: list[Seen] = []

    def look(photo: Photo) -> None:
        if faces is not None:
            seen.append(faces.look(photo.unit, first=not any(found for found, _ in seen)))

    photos = check_photos(subject, kind, look)
    if faces is not None:
        require_faces(subject.images[0].parent, [bool(found) for found, _ in seen], faces.detector.name)
    return photos, seen


def clean_photos(
    config: CleanPhotosConfig, subjects: Mapping[str, Sequence[PhotoFile]], apart: Callable[[dict[str, str]], None]
) -> dict[str, list[PhotoFile]]:
    """Find and check other photos of the subjects, {subject id: photos}.

    Raises:
        UserError: a photo cannot be used, a subject has none, or the folder lies in the output folder.
    """
    group = "image_layer.aspl" if isinstance(config, ASPLConfig) else "image_layer.fsmg"
    folder, option = str(config.clean_data_dir), f"{group}.clean_data_dir"
    apart({option: folder})
    chosen = Chosen(config.clean_set, option=f"{group}.clean_set")
    found = {one.id: one for one in find_subjects(folder, chosen=chosen)}
    if without := sorted(subjects.keys() - found.keys()):
        raise UserError(f"{option} {folder} has no photos of {', '.join(without)}; add some, or leave {option} out")
    for subject, photos in subjects.items():
        same = {sha256_file(photo.path) for photo in photos} & set(map(sha256_file, found[subject].images))
        if same:
            logger.warning(
                "%s has %s of %s that are protected too; give others, or leave the option out to learn the originals",
                *(option, count(len(same), "photo"), subject),
            )
    return {subject: check_photos(found[subject], "png") for subject in subjects}


def refuse_without_face(photos: Mapping[str, Sequence[PhotoFile]], known: Mapping[str, Sequence[PersonsFace]]) -> None:
    """Raise UserError if there are photos without a face."""
    if without := _without_face(photos, known):
        raise UserError(
            f"no face was found in {', '.join(map(name_of, without))}; remove the photo, or give "
            "--image_layer.zero_shot.no_face skip to leave it to the fine-tuning layer"
        )


def warn_of_unprotected(photos: Mapping[str, Sequence[PhotoFile]], known: Mapping[str, Sequence[PersonsFace]]) -> None:
    """Log a warning if there are photos without a face, in a run whose only layer changes faces."""
    if without := _without_face(photos, known):
        logger.warning(
            "no face was found in %s, and image_layer.method is none: nothing is changed there, so it is not "
            "protected; name a method, or leave the photo out",
            name_some(without),
        )


def _without_face(photos: Mapping[str, Sequence[PhotoFile]], known: Mapping[str, Sequence[PersonsFace]]) -> list[Path]:
    """The files of the photos without a face."""
    return [
        photo.path
        for subject, choices in known.items()
        for photo, choice in zip(photos[subject], choices, strict=True)
        if not choice.faces
    ]
