"""Which networks look at faces in a run: who finds faces, who judges likeness, and whom the photo protection misleads.

`FaceChoice` holds what the options name. `FaceNetworks` loads the networks when they are first asked for, each file
once, whatever it is used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apdm.core.errors import UserError
from apdm.faces.detector_score import DetectorScore
from apdm.faces.interfaces import FaceDetector, FaceEncoder, FaceScore
from apdm.faces.load import Loader, check_no_pickle, split_spec
from apdm.portraits import DETECTOR, ENCODERS, FACE_SCORE

BUNDLED = (*ENCODERS, FACE_SCORE, DETECTOR)
REAL_NETWORKS = "give --faces and the folder of an InsightFace pack, such as an unpacked buffalo_l"  # for messages


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """What the options say about networks for faces. An empty list or None means that the option is not given.

    Attributes:
        faces: `--faces`: packs and recognisers. All of them judge; the first is misled, and the first pack detects.
        encoders: the judging encoders, in place of `faces`.
        face_score: the detector that says whether a picture shows a face, in place of the pack's.
        targets: the encoders that the zero-shot layer misleads, in place of the first of `faces`.
        detector: the detector of the zero-shot layer, in place of the pack's.
        adapter_encoder: the encoder of the FaceID adapter, in place of the first of `faces`.
        allow_pickle: whether weights may be read from pickles.
        prefix: text before the names of the audit's options in messages.
    """

    faces: Sequence[str] = ()
    encoders: Sequence[str] = ()
    face_score: str | None = None
    targets: Sequence[str] = ()
    detector: str | None = None
    adapter_encoder: str | None = None
    allow_pickle: bool = False
    prefix: str = ""

    @property
    def by_option(self) -> dict[str, list[str]]:
        """{option: the networks that it names} of all options that are given."""
        lists = {
            "faces": self.faces,
            f"{self.prefix}encoders": self.encoders,
            "image_layer.zero_shot.encoders": self.targets,
            f"{self.prefix}face_score": [self.face_score],
            "image_layer.zero_shot.detector": [self.detector],
            f"{self.prefix}faceid_encoder": [self.adapter_encoder],
        }
        given = {option: [spec for spec in specs if spec is not None] for option, specs in lists.items()}
        return {option: specs for option, specs in given.items() if specs}

    @property
    def named(self) -> list[str]:
        """All networks that the options name."""
        return [spec for specs in self.by_option.values() for spec in specs]

    @property
    def is_bundled(self) -> bool:
        """Whether only bundled networks are named, or none: then the bundled ones stand for what is not given."""
        return all(spec in BUNDLED for spec in self.named)

    def check_world(self, model: str, *, miniature: bool) -> None:
        """Check that the networks know the faces that a model draws.

        Args:
            model: the model's path or name.
            miniature: whether the model is of the miniature world.

        Raises:
            UserError: a network does not exist; the model is of the miniature world and another network is named; or it
                is not, and a bundled network is named, or none at all; or a network is a pickle, and these are not
                allowed.
        """
        for option, specs in self.by_option.items():
            for spec in specs:
                if spec not in BUNDLED and not split_spec(spec)[0].exists():
                    raise UserError(f"{option} {spec} names no bundled network and no file; give the path of a model")
                if miniature and spec not in BUNDLED:
                    raise UserError(
                        f"{model} is a model of the miniature world, and only the bundled networks know its drawn "
                        f"people: leave out {option} {spec}, or name another model"
                    )
                if not miniature and spec in BUNDLED:
                    raise UserError(
                        f"{option} {spec} knows only the drawn people of the miniature world, and {model} is another "
                        f"model: {REAL_NETWORKS}"
                    )
                check_no_pickle(split_spec(spec)[0], allow_pickle=self.allow_pickle)
        if not miniature and not self.named:
            raise UserError(
                f"nothing says which networks look at faces, and the bundled ones know only the drawn people of the "
                f"miniature world: {REAL_NETWORKS}"
            )

    @property
    def pack(self) -> str | None:
        """The path of the first InsightFace pack that the options name."""
        paths = [split_spec(spec)[0] for spec in self.named if spec not in BUNDLED]
        return next((str(path) for path in paths if path.is_dir()), None)


def require_faces(folder: Path, detected: Sequence[bool], detector: str) -> None:
    """Check that a detector sees a face in at least half of a person's photos.

    Args:
        folder: the folder of the photos, for the message.
        detected: for each photo, whether the detector sees a face in it.
        detector: the detector's name.

    Raises:
        UserError: it sees fewer. Then the networks are not made for such photos, or the photos are not of a person.
    """
    if 2 * sum(detected) < len(detected):
        advice = "give photos that show the person's face, or another detector"
        if detector in BUNDLED:
            advice = f"it knows only drawn people; for a model and photos from outside, {REAL_NETWORKS}"
        raise UserError(
            f"{detector} sees a face in {sum(detected)} of the {len(detected)} photos in {folder}: {advice}"
        )


class FaceNetworks:
    """The networks of a run that look at faces. They are loaded when they are first asked for.

    Every property raises UserError if a network cannot be loaded, or if none is named.

    Args:
        choice: what the options name.
        fault: what is wrong with the choice as a whole; every property raises it. A run reads all its other input
            meanwhile, so that the user hears of everything that is wrong with it.
    """

    def __init__(self, choice: FaceChoice, fault: UserError | None = None) -> None:
        self._choice, self._fault = choice, fault
        self._loader = Loader(allow_pickle=choice.allow_pickle)

    @property
    def choice(self) -> FaceChoice:
        """What the options name. Raises UserError if it is wrong."""
        if self._fault is not None:
            raise self._fault
        return self._choice

    @cached_property
    def encoders(self) -> list[FaceEncoder]:
        """The encoders that judge likeness."""
        choice = self.choice
        return self._encoders(
            choice.encoders or choice.faces, ENCODERS, f"{choice.prefix}encoders", self._judging_detector
        )

    @cached_property
    def face_score(self) -> FaceScore:
        """Decides whether a picture shows a face."""
        if self.choice.face_score is not None:
            return self._loader.face_score(self.choice.face_score)
        if self.choice.is_bundled:
            return self._loader.face_score(FACE_SCORE)
        return DetectorScore(self._judging_detector)

    @cached_property
    def targets(self) -> list[FaceEncoder]:
        """The encoders that the zero-shot layer misleads."""
        choice, option = self.choice, "image_layer.zero_shot.encoders"
        return self._encoders(choice.targets or choice.faces[:1], ENCODERS[:1], option, self.detector)

    @cached_property
    def detector(self) -> FaceDetector:
        """Finds the faces for the zero-shot layer."""
        return self._detector(self.choice.detector, self.choice.face_score)

    @cached_property
    def adapter_encoder(self) -> FaceEncoder:
        """The encoder that the FaceID adapter works with."""
        choice = self.choice
        specs = choice.faces[:1] if choice.adapter_encoder is None else [choice.adapter_encoder]
        return self._encoders(specs, ENCODERS[:1], f"{choice.prefix}faceid_encoder", self._judging_detector)[0]

    @cached_property
    def _judging_detector(self) -> FaceDetector:
        return self._detector(self.choice.face_score, self.choice.detector)

    def _encoders(
        self, specs: Sequence[str], bundled: Sequence[str], option: str, detector: FaceDetector
    ) -> list[FaceEncoder]:
        """Load the encoders that an option names, or the bundled ones where nothing at all is named."""
        if not specs and not self.choice.is_bundled:
            raise UserError(f"no face encoder is named: give --faces with an InsightFace pack first, or {option}")
        return self._loader.encoders(specs or bundled, detector=detector)

    def _detector(self, given: str | None, other: str | None) -> FaceDetector:
        """Load the detector of one option, else the pack's, else that of the other option, else the bundled one."""
        for spec in (given, self.choice.pack, other):
            if spec is not None and spec != FACE_SCORE:
                return self._loader.detector(spec)
        if self.choice.is_bundled:
            return self._loader.detector(DETECTOR)
        raise UserError(
            "no face detector is named: give the folder of an InsightFace pack as the first of --faces, or a YuNet "
            f".onnx file as image_layer.zero_shot.detector (protected photos) or {self.choice.prefix}face_score (audit)"
        )
