"""Loading of face encoders, detectors and face scores by name or path."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.core.model_path import place_name
from apdm.faces.aligned_encoder import AlignedEncoder
from apdm.faces.detector_score import DetectorScore
from apdm.faces.insightface_pack import InsightFacePack
from apdm.faces.interfaces import FaceDetector, FaceEncoder, FaceScore
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.faces.onnx_module import OnnxModule
from apdm.faces.portrait import (
    PORTRAIT_DETECTOR,
    PORTRAIT_ENCODERS,
    PORTRAIT_FACE,
    PortraitDetector,
    PortraitEncoder,
    PortraitFaceScore,
)
from apdm.faces.yunet import YuNet

logger = get_logger(__name__)

PICKLES = (".pt", ".pth")
ENCODER_SUFFIXES = (".onnx", ".safetensors", *PICKLES)
# {file name of a recogniser, without suffix: the cosine of a match that its publisher gives}. For w600k_r50 it is the
# cosine from which InsightFace's own example (web-demos/src_recognition/main.py) says "the same person"; the example
# gives no false match rate. For other recognisers no published figure was found.
KNOWN_THRESHOLDS = {"w600k_r50": 0.28}


class Loader:
    """Loads face encoders, detectors and face scores, and keeps what it loaded: no file is loaded twice.

    Args:
        allow_pickle: whether .pt and .pth files may be read, with torch's restricted unpickler.
    """

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self.allow_pickle = allow_pickle
        self._loaded: dict[Path | str, Any] = {}

    def encoder(self, spec: str | Path, *, detector: FaceDetector | None = None) -> FaceEncoder:
        """Load one face encoder. `load_encoder` explains the arguments and the errors."""
        spec = str(spec)
        if spec in PORTRAIT_ENCODERS:
            encoder: FaceEncoder = self._once(spec, lambda: PortraitEncoder(spec))
            return encoder
        path, threshold = split_spec(spec)
        if not path.exists() or (path.is_file() and path.suffix not in ENCODER_SUFFIXES):
            known = ", ".join(sorted(PORTRAIT_ENCODERS))
            raise UserError(
                f"no face encoder is called {spec!r}; known: {known}, a path to {', '.join(ENCODER_SUFFIXES)}, "
                "or the folder of an InsightFace pack"
            )
        if path.is_dir():
            return self._encoder_of_pack(path, threshold, detector)
        threshold = threshold_of(path, path) if threshold is None else threshold
        if path.suffix == ".onnx":
            graph = self._graph(path)
            return AlignedEncoder(path.stem, threshold, graph, detector, size=graph.size, file=path)
        weights = self._once(path, lambda: _mobilefacenet(path, self.allow_pickle))
        return AlignedEncoder(path.stem, threshold, weights, detector, file=path)

    def encoders(self, specs: Sequence[str | Path], *, detector: FaceDetector | None = None) -> list[FaceEncoder]:
        """Load several face encoders.

        Raises:
            UserError: as in `load_encoder`, or two encoders have the same name.
        """
        encoders = [self.encoder(spec, detector=detector) for spec in specs]
        names = [encoder.name for encoder in encoders]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"two face encoders are called {name!r}, and results are listed by name; rename one file"
                )
        return encoders

    def detector(self, spec: str | Path) -> FaceDetector:
        """Load a face detector. `load_detector` explains the argument and the errors."""
        path = Path(spec)
        detector: FaceDetector
        if spec == PORTRAIT_DETECTOR:
            detector = self._once(spec, PortraitDetector)
        elif path.is_dir():
            detector = self._pack(path)
        elif path.is_file() and path.suffix == ".onnx":
            detector = self._once(f"detector {path.resolve()}", lambda: YuNet(path))
        else:
            raise UserError(
                f"no face detector is called {spec!r}; known: {PORTRAIT_DETECTOR}, the folder of an InsightFace pack, "
                "or a YuNet .onnx file"
            )
        return detector

    def face_score(self, spec: str | Path) -> FaceScore:
        """Load a face score. `load_face_score` explains the argument and the errors."""
        if spec == PORTRAIT_FACE:
            score: FaceScore = self._once(spec, PortraitFaceScore)
            return score
        if spec == PORTRAIT_DETECTOR or Path(spec).exists():
            return DetectorScore(self.detector(spec))
        raise UserError(
            f"no face score is called {spec!r}; known: {PORTRAIT_FACE}, {PORTRAIT_DETECTOR}, "
            "the folder of an InsightFace pack, or a YuNet .onnx file"
        )

    def _encoder_of_pack(self, folder: Path, threshold: float | None, detector: FaceDetector | None) -> AlignedEncoder:
        """The recogniser of a pack. It has a gradient, unless its graph uses an operator that is not implemented."""
        pack = self._pack(folder)
        file = pack.recogniser_file
        if threshold is None:
            threshold = threshold_of(folder, file)
        try:
            graph = self._graph(file)
        except UserError as fault:
            logger.warning("%s can only judge, without a gradient: %s", pack.name, fault)
            judge = AlignedEncoder(pack.name, threshold, pack.recognise, detector or pack, size=pack.size, file=file)
            return replace(judge, differentiable=False)
        return AlignedEncoder(pack.name, threshold, graph, detector or pack, size=graph.size, file=file)

    def _pack(self, folder: Path) -> InsightFacePack:
        pack: InsightFacePack = self._once(folder, lambda: InsightFacePack(folder))
        return pack

    def _graph(self, file: Path) -> OnnxModule:
        graph: OnnxModule = self._once(file, lambda: OnnxModule(file).eval())
        return graph

    def _once(self, key: Path | str, load: Callable[[], Any]) -> Any:
        """What `load` gives for this file or bundled name, which is called only once."""
        key = key.resolve() if isinstance(key, Path) else key
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]


def load_encoder(spec: str | Path, *, detector: FaceDetector | None = None, allow_pickle: bool = False) -> FaceEncoder:
    """Load one face encoder.

    Args:
        spec: the name of a bundled encoder, or PATH=THRESHOLD, or PATH if a .json file of the same name beside it holds
            {"threshold": ...} or the threshold is known. The threshold is the cosine above which two faces match. PATH
            is one of

            * an .onnx recogniser of ArcFace's kind, which is differentiable;
            * the .safetensors, .pt or .pth weights of a MobileFaceNet, which is differentiable;
            * the folder of an InsightFace pack, whose recogniser is an .onnx file.
        detector: finds the faces in whole pictures, for an encoder from a path. A pack has its own detector.
        allow_pickle: whether .pt and .pth files may be read, with torch's restricted unpickler.

    Raises:
        UserError: there is no such name or file, no threshold is given, the weights or the graph cannot be used, or a
            package is missing.
    """
    return Loader(allow_pickle=allow_pickle).encoder(spec, detector=detector)


def load_encoders(specs: Sequence[str | Path]) -> list[FaceEncoder]:
    """Load several face encoders, as `load_encoder` does.

    Raises:
        UserError: as in `load_encoder`, or two encoders have the same name.
    """
    return Loader().encoders(specs)


def load_detector(spec: str | Path) -> FaceDetector:
    """Load a face detector.

    Args:
        spec: "portrait" for the bundled detector, the folder of an InsightFace pack (SCRFD), or a YuNet .onnx file.

    Raises:
        UserError: there is no such name or file, the model cannot be used, or a package is missing.
    """
    return Loader().detector(spec)


def load_face_score(spec: str | Path) -> FaceScore:
    """Load a face score.

    Args:
        spec: "portrait-face" for the bundled face score, or a detector as `load_detector` takes it.

    Raises:
        UserError: there is no such name or file, or the detector cannot be loaded.
    """
    return Loader().face_score(spec)


def split_spec(spec: str) -> tuple[Path, float | None]:
    """Split PATH=THRESHOLD. A path that itself holds an equals sign stays whole if no number follows the sign.

    Raises:
        UserError: the number is no cosine.
    """
    path, _, number = spec.rpartition("=")
    try:
        return Path(path), _valid(float(number), spec)
    except ValueError:
        return Path(spec), None


def threshold_of(given: Path, file: Path) -> float:
    """The threshold of a recogniser that was named without one.

    Args:
        given: the path that the user named, a file or a pack's folder.
        file: the recogniser's file.

    Raises:
        UserError: it is nowhere to be found, or the .json file beside the path cannot be read.
    """
    for path in dict.fromkeys((given, file)):
        beside = _beside(path)
        try:
            return _valid(float(json.loads(beside.read_text())["threshold"]), beside.name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f'{beside.name} cannot be read; it should be {{"threshold": 0.3}}') from None
    if file.stem in KNOWN_THRESHOLDS:
        return KNOWN_THRESHOLDS[file.stem]
    raise UserError(
        f"face encoder {place_name(given)} has no threshold: give {given}=0.3 in place of {given}, or write "
        f'{{"threshold": 0.3}} into {_beside(given)}; for 0.3 put the cosine that one pair in a '
        "thousand of photos of different people exceeds, which is 0.28 for w600k_r50"
    )


def _beside(path: Path) -> Path:
    """The .json file that may lie beside a recogniser's file or a pack's folder, with its threshold."""
    named = path if path.name else Path(os.path.abspath(path))  # "." has no name
    return named.with_name(f"{named.stem}.json")


def _valid(threshold: float, where: str) -> float:
    if not (math.isfinite(threshold) and -1 < threshold < 1):
        raise UserError(f"{where}: a threshold is a cosine between -1 and 1, not {threshold}")
    return threshold


def _mobilefacenet(path: Path, allow_pickle: bool) -> MobileFaceNet:
    model = MobileFaceNet()
    try:
        model.load_state_dict(_state(path, allow_pickle))
    except (RuntimeError, AttributeError, TypeError):
        raise UserError(
            f"{path.name} does not hold the weights of a MobileFaceNet; give other encoders as .onnx"
        ) from None
    return model.eval().requires_grad_(False)


def check_no_pickle(path: Path, *, allow_pickle: bool) -> None:
    """Raise UserError if a file of weights is a pickle, and pickles are not allowed."""
    if path.suffix in PICKLES and not allow_pickle:
        raise UserError(
            f"{path.name} is a pickle, which can run code; pass --allow_pickle true, or save it as .safetensors"
        )


def _state(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    check_no_pickle(path, allow_pickle=allow_pickle)
    try:
        if path.suffix in PICKLES:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        return load_file(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__}); replace it") from None
