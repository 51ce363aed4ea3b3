"""Loading of face encoders, detectors and face scores by name or path."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apdm.core.errors import UserError
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

PICKLES = (".pt", ".pth")
ENCODER_SUFFIXES = (".onnx", ".safetensors", *PICKLES)


def load_encoder(spec: str, *, detector: FaceDetector | None = None, allow_pickle: bool = False) -> FaceEncoder:
    """Load one face encoder.

    Args:
        spec: the name of a bundled encoder, or PATH=THRESHOLD, or PATH if a .json file of the same name beside it holds
            {"threshold": ...}. The threshold is the cosine above which two faces match. PATH is one of

            * an .onnx recogniser of ArcFace's kind, which is differentiable;
            * the .safetensors, .pt or .pth weights of a MobileFaceNet, which is differentiable;
            * the folder of an InsightFace pack, which has no gradient and can only judge.
        detector: finds the faces in whole pictures, for an encoder from a path. A pack has its own detector.
        allow_pickle: whether .pt and .pth files may be read, with torch's restricted unpickler.

    Raises:
        UserError: there is no such name or file, no threshold is given, the weights or the graph cannot be used, or a
            package is missing.
    """
    if spec in PORTRAIT_ENCODERS:
        return PortraitEncoder(spec)
    path, threshold = _split(spec)
    if not path.exists() or (path.is_file() and path.suffix not in ENCODER_SUFFIXES):
        known = ", ".join(sorted(PORTRAIT_ENCODERS))
        raise UserError(
            f"no face encoder is called {spec!r}; known: {known}, a path to {', '.join(ENCODER_SUFFIXES)}, "
            "or the folder of an InsightFace pack"
        )
    threshold = _threshold_beside(path) if threshold is None else threshold
    if path.is_dir():
        pack = InsightFacePack(path, recogniser=True)
        return AlignedEncoder(
            path.name, threshold, pack.recognise, detector or pack, size=pack.size, differentiable=False
        )
    if path.suffix == ".onnx":
        graph = OnnxModule(path)
        return AlignedEncoder(path.stem, threshold, graph.eval(), detector, size=graph.size)
    return AlignedEncoder(path.stem, threshold, _mobilefacenet(path, allow_pickle), detector)


def load_encoders(
    specs: list[str], *, detector: FaceDetector | None = None, allow_pickle: bool = False
) -> list[FaceEncoder]:
    """Load several face encoders, as `load_encoder` does.

    Raises:
        UserError: as in `load_encoder`, or two encoders have the same name.
    """
    encoders = [load_encoder(spec, detector=detector, allow_pickle=allow_pickle) for spec in specs]
    names = [encoder.name for encoder in encoders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two face encoders are called {name!r}, and results are listed by name; rename one file")
    return encoders


def load_detector(spec: str) -> FaceDetector:
    """Load a face detector.

    Args:
        spec: "portrait" for the bundled detector, the folder of an InsightFace pack (SCRFD), or a YuNet .onnx file.

    Raises:
        UserError: there is no such name or file, the model cannot be used, or a package is missing.
    """
    path = Path(spec)
    if spec == PORTRAIT_DETECTOR:
        return PortraitDetector()
    if path.is_dir():
        return InsightFacePack(path)
    if path.is_file() and path.suffix == ".onnx":
        return YuNet(path)
    raise UserError(
        f"no face detector is called {spec!r}; known: {PORTRAIT_DETECTOR}, the folder of an InsightFace pack, "
        "or a YuNet .onnx file"
    )


def load_face_score(spec: str) -> FaceScore:
    """Load a face score.

    Args:
        spec: "portrait-face" for the bundled face score, or a detector as `load_detector` takes it.

    Raises:
        UserError: there is no such name or file, or the detector cannot be loaded.
    """
    if spec == PORTRAIT_FACE:
        return PortraitFaceScore()
    if spec == PORTRAIT_DETECTOR or Path(spec).exists():
        return DetectorScore(load_detector(spec))
    raise UserError(
        f"no face score is called {spec!r}; known: {PORTRAIT_FACE}, {PORTRAIT_DETECTOR}, "
        "the folder of an InsightFace pack, or a YuNet .onnx file"
    )


def _split(spec: str) -> tuple[Path, float | None]:
    """Split PATH=THRESHOLD. A path that itself holds an equals sign stays whole if no number follows the sign."""
    path, _, number = spec.rpartition("=")
    try:
        return Path(path), _valid(float(number), spec)
    except ValueError:
        return Path(spec), None


def _threshold_beside(path: Path) -> float:
    beside = path.with_name(path.stem + ".json")
    try:
        return _valid(float(json.loads(beside.read_text())["threshold"]), beside.name)
    except FileNotFoundError:
        raise UserError(
            f"face encoder {path.name} has no threshold: give {path.name}=0.3 (the cosine of a match), "
            f'or write {{"threshold": 0.3}} into {beside.name} beside it'
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{beside.name} cannot be read; it should be {{"threshold": 0.3}}') from None


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


def _state(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if path.suffix in PICKLES and not allow_pickle:
        raise UserError(
            f"{path.name} is a pickle, which can run code; pass --allow_pickle true, or save it as .safetensors"
        )
    try:
        if path.suffix in PICKLES:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        return load_file(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__}); replace it") from None
