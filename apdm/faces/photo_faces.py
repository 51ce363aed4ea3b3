"""What is said about the faces in a person's photos, in one line and in results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from apdm.core.terminal import count
from apdm.faces.interfaces import Face
from apdm.faces.person import PersonsFace

SMALL = 1 / 16  # of the side of the square that a trainer makes; there a smaller face is hardly more than a few dots


@dataclass(frozen=True, kw_only=True)
class PhotoFaces:
    """The faces in a person's photos. Photos are numbered from 0, in the order of their names.

    Attributes:
        subject: the person's id.
        photos: number of photos.
        without: the photos in which no face was found.
        by_likeness: photos with several faces, of which one is like the face in the person's other photos.
        unclear: photos with several faces of which it is unclear which is the person's.
        unlike: photos whose only face is unlike the faces in the person's other photos.
        outside: photos whose centred square, which a trainer cuts out, holds less than half of the person's face.
        small: photos in whose centred square the person's face is shorter than a sixteenth of the side.
        faces: {number of a photo with several faces: how many faces}.
    """

    subject: str
    photos: int
    without: list[int] = field(default_factory=list)
    by_likeness: list[int] = field(default_factory=list)
    unclear: list[int] = field(default_factory=list)
    unlike: list[int] = field(default_factory=list)
    outside: list[int] = field(default_factory=list)
    small: list[int] = field(default_factory=list)
    faces: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(subject: str, choices: Sequence[PersonsFace], sizes: Sequence[tuple[int, int]]) -> PhotoFaces:
        """Describe photos.

        Args:
            choices: the faces in each photo.
            sizes: height and width of each photo.
        """
        known = [
            (i, choice.faces[choice.index], *sizes[i])
            for i, choice in enumerate(choices)
            if choice.index is not None and choice.reason != "unclear"
        ]

        def with_reason(reason: str) -> list[int]:
            return [i for i, choice in enumerate(choices) if choice.reason == reason]

        return PhotoFaces(
            subject=subject,
            photos=len(choices),
            without=with_reason("none"),
            by_likeness=with_reason("alike"),
            unclear=with_reason("unclear"),
            unlike=with_reason("unlike"),
            outside=[i for i, face, height, width in known if _share_inside(face, height, width) < 0.5],
            small=[i for i, face, height, width in known if _side(face) < SMALL * min(height, width)],
            faces={str(i): len(choice.faces) for i, choice in enumerate(choices) if len(choice.faces) > 1},
        )

    def text(self, names: Sequence[str], *, done: str = "protected") -> str:
        """Say it in one line.

        Args:
            names: a name for each photo.
            done: what is done with the chosen faces.
        """
        parts = [f"{count(self.photos, 'photo')}, {self.photos - len(self.without)} with a face"]
        several = "in {} {} faces, "
        for i in self.by_likeness:
            parts.append(
                several.format(names[i], self.faces[str(i)])
                + f"the one that is like the face in the other photos is {done}"
            )
        for i in self.unclear:
            every = "all are protected" if done == "protected" else f"the largest is {done}"
            parts.append(
                several.format(names[i], self.faces[str(i)]) + f"and it is unclear which is this person's, so {every}"
            )
        for found, text in (
            (self.without, "no face in {}" + ", left out" * (done == "compared")),
            (self.unlike, "the face in {} is unlike the one in the other photos"),
            (self.outside, "the face lies outside the centred square, which a trainer cuts out, in {}"),
            (self.small, "the face is very small in {}"),
        ):
            if found:
                parts.append(text.format(", ".join(names[i] for i in found)))
        return "; ".join(parts)

    @property
    def is_plain(self) -> bool:
        """Whether every photo shows one face, and there is nothing to say about any."""
        return not (self.without or self.faces or self.unlike or self.outside or self.small)


def _side(face: Face) -> float:
    left, top, right, bottom = face.box
    return max(right - left, bottom - top)


def _share_inside(face: Face, height: int, width: int) -> float:
    """Return which share of a face's box lies in the centred square of a photo."""
    left, top, right, bottom = face.box
    side = min(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    inside = max(0.0, min(right, x + side) - max(left, x)) * max(0.0, min(bottom, y + side) - max(top, y))
    return inside / max(face.area, 1e-9)
