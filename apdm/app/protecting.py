"""Looking at the photos of a page, and protecting them: by the functions of `apdm perturb`, with its options."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from apdm.app.choices import Choice
from apdm.app.sessions import Session
from apdm.config import AppConfig, PerturbConfig
from apdm.core.errors import UserError
from apdm.core.files import write_beside
from apdm.data.photo_files import printable, stem
from apdm.data.subjects import read_image
from apdm.export.layout import IMAGES
from apdm.faces.choice import require_faces
from apdm.faces.person import PersonsFace, Reason
from apdm.image_layer.photos import SUFFIX
from apdm.image_layer.results import Perturbation
from apdm.jobs.perturb import PhotoModels, perturb
from apdm.jobs.photos.job import PhotoJob, Watch
from apdm.jobs.planning.plan import photo_notes

PAGE = "this page"  # in messages, in place of the private folder
THUMBNAIL = 480  # pixels of the longer side
ZIP = "protected-photos.zip"
SAID: dict[Reason, str] = {
    "none": "no face found: the layer for faces leaves it as it is",
    "only": "one face",
    "unlike": "one face, unlike the one in the other photos",
    "alike": "{} faces: the one in green is like the face in the other photos, and is protected",
    "unclear": "{} faces: it is unclear which is this person's, so all are protected",
}


@dataclass(frozen=True, kw_only=True)
class SeenPhoto:
    """What is known about one photo.

    Attributes:
        name: its file name.
        width, height: its size in pixels.
        boxes: left, top, width and height of each face, as shares of the photo, and whether it will be protected.
        text: what is said about the faces; empty if nobody looked for any.
    """

    name: str
    width: int
    height: int
    boxes: list[tuple[float, float, float, float, bool]]
    text: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known about all photos of a page.

    Attributes:
        photos: the photos, in their order.
        notes: what is said about all of them.
        fault: why they cannot be protected; empty if they can.
    """

    photos: list[SeenPhoto]
    notes: list[str]
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Protects the photos of pages.

    Attributes:
        config: the options of the command.
        models: the networks for faces and the model, which all pages share.
        class_pictures: the folder of class pictures, which all pages share.
    """

    config: AppConfig
    models: PhotoModels
    class_pictures: Path

    @property
    def choice(self) -> Choice:
        """The choice that the page begins with: what the options of the command say."""
        return Choice.of(self.config)

    @property
    def knows_faces(self) -> bool:
        """Whether there are networks for faces, so that the layer for faces can be chosen."""
        return self.config.image_layer.zero_shot.enabled

    def options(self, session: Session, choice: Choice | None = None) -> PerturbConfig:
        """The options with which `apdm perturb` would do the same."""
        config = self.config.for_photos(session.photos, session.output, self.class_pictures)
        return config if choice is None else choice.apply(config)

    def look(self, session: Session) -> Seen:
        """Look for the faces in the photos of a page.

        Raises:
            UserError: a photo cannot be used.
        """
        if not session.names():
            return Seen(photos=[], notes=[])
        with in_words_of_the_page(session):
            job = PhotoJob.load(self.options(session), self.models.networks, quiet=True)
            ((subject, photos),) = job.photos.items()
            found: list[PersonsFace | None] = [*job.look_for_faces(subject)] or [None for _ in photos]
            names = [printable(photo.path.name) for photo in photos]
            notes = [about.text(names) for about in job.describe_faces() if not about.is_plain]
            if animated := photo_notes(str(session.photos))["first frame"]:
                names_alone = animated.replace(f"{session.photos.name}/", "")
                notes.insert(0, f"only the first frame is read: {names_alone}")
        fault = ""
        if job.faces is not None:
            try:
                require_faces(Path(PAGE), [bool(one and one.faces) for one in found], job.faces.detector.name)
            except UserError as error:
                fault = str(error)
        seen = [
            _seen(name, photo.width, photo.height, one) for name, photo, one in zip(names, photos, found, strict=True)
        ]
        return Seen(photos=seen, notes=notes, fault=fault)

    def protect(self, session: Session, choice: Choice, watch: Watch) -> Perturbation:
        """Protect the photos of a page, as `apdm perturb` does, and put them into one file.

        Raises:
            UserError: the photos or the choice cannot be used.
            Interrupted: `watch` has raised it.
        """
        if not session.names():
            raise UserError("there is no photo; drop one first")
        with in_words_of_the_page(session):
            result = perturb(self.options(session, choice), command="apdm app", models=self.models, watch=watch)
        if result.figures is None:
            raise RuntimeError("the run has measured nothing")
        with write_beside(session.shown / ZIP) as partial, zipfile.ZipFile(partial, "w") as archive:
            for path in protected_files(session):
                archive.write(path, path.name)
        session.figures = result.figures
        return result.figures


@contextmanager
def in_words_of_the_page(session: Session) -> Iterator[None]:
    """Replace the private folders in messages, which say nothing to anybody."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for folder in (session.photos, session.output, session.folder):
            text = text.replace(str(folder), PAGE)
        lines = [line.removeprefix(f"{session.photos.name}/") for line in text.splitlines()]
        raise UserError("\n".join(lines)) from None


def protected_files(session: Session) -> list[Path]:
    """The protected photos of a page, in the order of the photos."""
    folders = sorted((session.output / IMAGES).iterdir()) if (session.output / IMAGES).is_dir() else []
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in SUFFIX.values()]
    order = {stem(Path(name)): place for place, name in enumerate(session.names())}
    return sorted(files, key=lambda path: (order.get(path.stem, len(order)), path.name))


def thumbnail(session: Session, photo: Path) -> Path:
    """Return a small upright copy of a photo."""
    return _copy(session, photo, ".jpg", side=THUMBNAIL)


def upright(session: Session, photo: Path) -> Path:
    """Return a copy of a photo with the very pixels that the protection starts from, in a format that browsers read."""
    return _copy(session, photo, ".png")


def _copy(session: Session, photo: Path, suffix: str, side: int | None = None) -> Path:
    target = session.shown / f"{photo.name}{suffix}"
    if not target.exists():
        version = session.version
        image: Image.Image = read_image(photo)
        if side is not None:
            image.thumbnail((side, side))
        with session.lock:
            session.require_open(version)  # another photo may have this name by now
            with write_beside(target) as partial:
                _save(image, partial, suffix)
    return target


def _save(image: Image.Image, file: Path, suffix: str) -> None:
    if suffix == ".png":
        image.save(file, format="PNG", compress_level=1)
    else:
        image.save(file, format="JPEG", quality=85)


def _seen(name: str, width: int, height: int, face: PersonsFace | None) -> SeenPhoto:
    boxes = []
    for one in face.faces if face is not None else []:
        left, top, right, bottom = one.box
        chosen = face is not None and any(one is other for other in face.chosen)
        boxes.append((left / width, top / height, (right - left) / width, (bottom - top) / height, chosen))
    text = SAID[face.reason].format(len(face.faces)) if face is not None else ""
    return SeenPhoto(name=name, width=width, height=height, boxes=boxes, text=text)
