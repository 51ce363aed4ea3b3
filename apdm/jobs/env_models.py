"""`apdm env --models FILE`: load each model that a file names, and say what it can be used for.

What a model is follows from its content and not from its name. Nothing is downloaded: a name on the Hub is looked up in
the cache of this machine.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError
from torch import nn

from apdm.attacks.parts.adapter_file import AdapterFile
from apdm.config.paths import expand_path
from apdm.config.yaml_text import read_yaml
from apdm.core.errors import UserError, one_line
from apdm.core.files import sha256_file
from apdm.core.logging import get_logger
from apdm.core.model_path import HUB_ID, INDEX, index_file
from apdm.faces.described import NamedThreshold, describe
from apdm.faces.insightface_pack import InsightFacePack
from apdm.faces.load import load_detector, load_encoder, split_spec, threshold_of
from apdm.families import load_family
from apdm.families.load import families_by_pipeline
from apdm.families.pipeline_folder import stored_variants
from apdm.families.single_file.layout import DENOISER
from apdm.families.single_file.read import pipeline_class
from apdm.families.stored_file import check_content, read_header
from apdm.jobs.common.prepare import prepare_process
from apdm.metrics.inception import Inception, is_torchscript

logger = get_logger(__name__)

PIPELINE, DETECTOR, MISLED, RECOGNISER, SIMILARITY, PROMPTS, UTILITY, ADAPTER = (
    *("pipeline", "face detector", "face recogniser with gradients", "face recogniser"),
    *("similarity of pictures", "fit of pictures and prompts", "features of pictures", "zero-shot adapter"),
)
# {job: what it needs}. To claim protection, an audit of people needs two recognisers, of which the photo protection
# misled at most one, and on real models a network whose features show how whole pictures differ.
JOBS: Mapping[str, Sequence[str]] = {
    "harden": (PIPELINE,),
    "perturb, layer 1 (fine-tuning)": (PIPELINE,),
    "perturb, layer 2 (zero-shot)": (DETECTOR, MISLED),
    "audit of people": (PIPELINE, DETECTOR, RECOGNISER, RECOGNISER, UTILITY),
    "audit of objects": (PIPELINE, SIMILARITY),
    "utility in audits": (PROMPTS, UTILITY),
    "zero-shot attack": (PIPELINE, ADAPTER),
}
THRESHOLD = 0.5  # any: only to load a recogniser, whose own threshold its user knows
IN_CACHE = " (in the cache of the Hub)"  # note on a model


@dataclass(frozen=True)
class Found:
    """What a model is.

    Attributes:
        text: its kind and size, in words.
        use: how it is given to the commands.
        serves: what it can serve as, keys of `JOBS`' needs.
        recogniser: the face recogniser in it; None if there is none.
    """

    text: str
    use: str
    serves: tuple[str, ...]
    recogniser: NamedThreshold | None = None


def look_at_models(file: str, *, allow_pickle: bool) -> tuple[list[str], bool]:
    """Load every model that a file names, one after another.

    Args:
        file: the YAML file.
        allow_pickle: whether pickles may be loaded.

    Returns:
        Lines to print: one for each model, then one for each job; and whether all models were loaded.

    Raises:
        UserError: the file cannot be read, or names no models.
    """
    models = read_names(file)
    prepare_process(None)
    lines, served, complete = [], list[str](), True
    recognisers: dict[str, NamedThreshold] = {}
    width = max(map(len, models))
    for name, path in models.items():
        try:
            found = recognise(path, allow_pickle=allow_pickle)
        except UserError as error:
            complete = False
            lines.append(f"{name:<{width}}  FAILED  {error}")
        else:
            served += found.serves
            text = found.text
            if found.recogniser is not None:
                same = [one for one, known in recognisers.items() if known.is_same(found.recogniser)]
                recognisers[name] = found.recogniser
                if same:
                    served.remove(RECOGNISER)
                    text += f", the same recogniser as {same[0]}"
            lines.append(f"{name:<{width}}  ok      {text}: {found.use}")
        gc.collect()
    return [*lines, "", *_jobs(served)], complete


def read_names(file: str) -> dict[str, str]:
    """Return {name: path} of a YAML file. Paths are as in the file; `~` and `$NAME` in them are replaced."""
    tree = read_yaml(file, line="name: path")
    form = 'write one "name: path" in each line'
    if not tree:
        raise UserError(f"{file} names no models; {form}")
    if wrong := [name for name, path in tree.items() if not isinstance(path, str)]:
        raise UserError(f"{file}: {wrong[0]} has no path; {form}")
    try:
        return {str(name): expand_path(path) for name, path in tree.items()}
    except ValueError as problem:
        raise UserError(f"{file}: {problem}") from None


def recognise(path: str, *, allow_pickle: bool) -> Found:
    """Load one model and say what it is.

    Args:
        path: a file, a folder, or a name on the Hub; a face recogniser also as PATH=THRESHOLD.
        allow_pickle: whether a pickle may be loaded.

    Raises:
        UserError: the model is not there, cannot be loaded, or is of no kind that this program uses.
    """
    if not Path(path).exists():
        path = str(split_spec(path)[0])
    place, note = _locate(path)
    if place.is_file():
        return _of_file(place, path, allow_pickle)
    if (place / INDEX).exists():
        return _pipeline(place, path, note, allow_pickle)
    if any(place.rglob("*.onnx")):
        return _pack(place, path)
    config = place / "config.json"
    if config.exists():
        return _of_config(place, path, note, config)
    if any(place.glob(f"snapshots/*/{INDEX}")):
        index_file(place)  # raises, and names the pipeline in this cache of the Hub
    raise UserError(f"{path} is no pipeline, no InsightFace pack and no model of transformers; name such a folder")


def _locate(path: str) -> tuple[Path, str]:
    """Return the place of a model on this machine, and a note if it is in the cache of the Hub."""
    place = Path(path)
    if place.exists():
        return place, ""
    if not HUB_ID.fullmatch(path):
        raise UserError(f"{path} does not exist")
    try:
        return Path(snapshot_download(path, local_files_only=True)), IN_CACHE
    except IncompleteSnapshotError as fault:  # diffusers and transformers fetch only some files; loading finds gaps
        return Path(fault.snapshot_path), IN_CACHE
    except Exception:  # the Hub's library raises many kinds, and most of their texts speak of the network
        raise UserError(
            f"{path} is neither here nor in the cache of the Hub, and nothing was downloaded; "
            f"fetch it with: hf download {path}; for a pipeline rather with diffusers' DiffusionPipeline.download, "
            "which fetches only the files that are needed"
        ) from None


# -- folders -----------------------------------------------------------------------------------------------------------


def _pipeline(place: Path, path: str, note: str, allow_pickle: bool) -> Found:
    variants = stored_variants(place)
    variant = None if None in variants or not variants else sorted(filter(None, variants))[0]
    family = load_family(place, variant=variant, allow_pickle=allow_pickle, as_stored=True)
    weights = sum(weight.numel() for weight in family.denoiser.parameters())
    stored = str(family.dtypes.get(family.denoiser_name, family.denoiser.dtype)).removeprefix("torch.")
    side = family.denoiser.config.get("sample_size")
    pixels = f", {side * family.vae_scale} pixels" if isinstance(side, int) else ""
    text = f"{family.name}{note}, {weights / 1e6:,.0f} M weights in the {family.denoiser_name}, {stored}{pixels}"
    use = f"--pretrained_model_name_or_path {path}" + f" --variant {variant}" * bool(variant)
    return Found(text, use, (PIPELINE,))


def _pack(place: Path, path: str) -> Found:
    """An InsightFace pack. Its recogniser can be misled if its file can be run with gradients."""
    pack = InsightFacePack(place)
    try:
        file = pack.recogniser_file
    except UserError:
        return Found("InsightFace pack with no recogniser", f"--image_layer.zero_shot.detector {path}", (DETECTOR,))
    width = pack.recognise(torch.zeros(1, 3, pack.size, pack.size)).shape[1]
    text = f"InsightFace pack, detector and recogniser of {width} numbers"
    try:
        threshold_of(place, file)
        use = f"--faces {path}"
    except UserError:  # nobody has told it
        use = f"--faces {path}=THRESHOLD"
    try:
        recogniser = describe(load_encoder(f"{file}={THRESHOLD}", detector=pack))
    except UserError as error:
        why = f" without gradients, which can judge and not be misled ({error})"
        in_file = NamedThreshold(name=pack.name, threshold=THRESHOLD, sha256=sha256_file(file))
        return Found(text + why, use, (DETECTOR, RECOGNISER), in_file)
    return Found(text, use, (DETECTOR, RECOGNISER, MISLED), recogniser)


def _of_config(place: Path, path: str, note: str, config: Path) -> Found:
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        kind = str(facts.get("_class_name") or facts.get("model_type"))
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{config} cannot be read; copy the folder anew") from None
    if kind == "ControlNetModel":
        net: Any = diffusers.ControlNetModel
        model = _loaded(path, lambda: net.from_pretrained(place, local_files_only=True))
        return Found(
            f"ControlNet{note}, {_size(model)}", f"--faceid_controlnet {path}, beside an InstantID adapter", ()
        )
    if "_class_name" in facts:
        raise UserError(f"{path} is a part of a pipeline, a {kind}; name the folder with {INDEX}")
    from apdm.metrics.extractors import ClipModel, VisionModel

    picture = torch.zeros(1, 3, 64, 64)
    if "clip" in kind:
        clip = ClipModel(place)
        clip.score(picture, ["a photo"])
        return Found(f"CLIP{note}, {_size(clip.model)}", f"--judge clip:{path}", (PROMPTS, SIMILARITY, UTILITY))
    vision = VisionModel(place)
    width = vision(picture).shape[1]
    text = f"{kind}{note}, {_size(vision.model)}, features of {width} numbers"
    return Found(text, f"--judge dino:{path}", (SIMILARITY, UTILITY))


# -- files -------------------------------------------------------------------------------------------------------------


def _of_file(place: Path, path: str, allow_pickle: bool) -> Found:
    if place.suffix == ".onnx":
        return _onnx(place, path)
    if check_content(place) == "pickle" and not allow_pickle:
        raise UserError(f"{path} is a pickle, which can run code; give --allow_pickle true if you trust it")
    if is_torchscript(place):
        return _inception(place, path)
    header = read_header(place)
    names = header.shapes
    if "Mixed_5b.branch1x1.conv.weight" in names:
        return _inception(place, path)
    if any(name.startswith(("image_proj.", "ip_adapter.")) for name in names):
        adapter = AdapterFile.read(place, allow_pickle=allow_pickle)
        kind = "InstantID" if adapter.is_resampler else "FaceID"
        text = f"{kind} adapter for embeddings of {adapter.dimension} numbers"
        return Found(text, f"--faceid_adapter {path}, with its --faceid_encoder", (ADAPTER,))
    if pipeline_class(header, families_by_pipeline()) or any(name.startswith(DENOISER) for name in names):
        return Found(
            f"single-file checkpoint, {sum(map(math.prod, names.values())) / 1e6:,.0f} M numbers",
            f"--pretrained_model_name_or_path {path} --single_file_config FOLDER; only its header was read",
            (PIPELINE,),
        )
    try:
        recogniser = describe(load_encoder(f"{place}={THRESHOLD}", allow_pickle=allow_pickle))
    except UserError:
        raise UserError(
            f"{path} is no single-file checkpoint, no adapter for faces and no MobileFaceNet; name one of these"
        ) from None
    use = f"--faces PACK {path}=THRESHOLD"
    return Found("MobileFaceNet, a face recogniser", use, (RECOGNISER, MISLED), recogniser)


def _inception(place: Path, path: str) -> Found:
    Inception(place, allow_pickle=True)(torch.zeros(1, 3, 64, 64))  # a pickle was allowed before
    return Found("the Inception network of FID", f"--judge inception:{path}", (UTILITY,))


def _onnx(place: Path, path: str) -> Found:
    try:
        encoder: Any = load_encoder(f"{place}={THRESHOLD}")
        width = encoder.model(torch.zeros(1, 3, encoder.size, encoder.size)).shape[1]
    except UserError as error:
        try:
            load_detector(str(place))
        except UserError:
            raise UserError(
                f"{path} is neither a face recogniser ({error}) nor a YuNet detector; name other detectors with the "
                "folder of their InsightFace pack"
            ) from None
        return Found("YuNet, a face detector", f"--face_score {path}", (DETECTOR,))
    text = f"face recogniser of {width} numbers for faces of {encoder.size} pixels"
    return Found(text, f"--faces PACK {path}=THRESHOLD", (RECOGNISER, MISLED), describe(encoder))


def _loaded(path: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load()
    except Exception as error:  # damaged files make the libraries raise anything
        raise UserError(f"{path} cannot be loaded: {one_line(error, 200)}; copy it anew") from error


def _size(model: nn.Module) -> str:
    return f"{sum(weight.numel() for weight in model.parameters()) / 1e6:,.0f} M weights"


def _jobs(served: Sequence[str]) -> list[str]:
    """One line for each job: ready, or what is missing."""
    width, lines = max(map(len, JOBS)), []
    for job, needs in JOBS.items():
        lacking = Counter(needs) - Counter(served)
        missing = [need if number == 1 else f"{number} of: {need}" for need, number in lacking.items()]
        lines.append(f"{job:<{width}}  " + (f"missing: {', '.join(missing)}" if missing else "ready"))
    return lines
