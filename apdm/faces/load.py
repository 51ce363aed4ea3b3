"""From a name or a path to an encoder, a detector or a face score."""

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
from apdm.faces.aligned import AlignedEncoder, DetectorScore
from apdm.faces.base import FaceDetector, FaceEncoder, FaceScore
from apdm.faces.insightface_pack import InsightFacePack
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.faces.onnx_module import OnnxModule
from apdm.faces.portrait import (
    PORTRAIT_DETECTOR,
    PORTRAIT_ENCODERS,
    PORTRAIT_FACE,
    PortraitDetector,
    PortraitEncoder,
    PortraitFace,
)
from apdm.faces.yunet import YuNet

PICKLES = (".pt", ".pth")
ENCODER_SUFFIXES = (".onnx", ".safetensors", *PICKLES)


def load_encoder(spec: str, *, detector: FaceDetector | None = None, allow_pickle: bool = False) -> FaceEncoder:
    """One encoder.

    Args:
        spec: a bundled name; or PATH=THRESHOLD, or PATH with a {"threshold": ...} in a .json of the same name beside
            it. PATH is an .onnx recogniser of ArcFace's kind, the .safetensors (or .pt, .pth) weights of a
            MobileFaceNet, both differentiable; or the folder of an InsightFace pack, which only judges. The
            threshold is a cosine.
        detector: finds the faces in whole pictures for an encoder from a PATH; a pack brings its own.
        allow_pickle: also read .pt and .pth, with torch's restricted unpickler.
    Raises:
        UserError: no such name or file, no threshold, weights or a graph that cannot be used, a missing package.
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
    """The encoders of `load_encoder`, in order. Raises UserError as it does, and for two of one name."""
    encoders = [load_encoder(spec, detector=detector, allow_pickle=allow_pickle) for spec in specs]
    names = [encoder.name for encoder in encoders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two face encoders are called {name!r}, and results go by the name: rename one file")
    return encoders


def load_detector(spec: str) -> FaceDetector:
    """A detector: "portrait"; the folder of an InsightFace pack (SCRFD); or a YuNet .onnx file.

    Raises:
        UserError: no such name or file, a model that cannot be used, a missing package.
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
    """The bundled face score, or any detector of `load_detector` as one. Raises UserError for anything else."""
    if spec == PORTRAIT_FACE:
        return PortraitFace()
    if spec == PORTRAIT_DETECTOR or Path(spec).exists():
        return DetectorScore(load_detector(spec))
    raise UserError(f"no face score is called {spec!r}; known: {PORTRAIT_FACE}, or what load_detector takes")


def _split(spec: str) -> tuple[Path, float | None]:
    """PATH=THRESHOLD; a path that itself holds an equals sign stays whole where no number follows it."""
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
        raise UserError(f"{path.name} is a pickle, which can run code: allow pickles, or save it as .safetensors")
    try:
        if path.suffix in PICKLES:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        return load_file(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__}); replace it") from None
