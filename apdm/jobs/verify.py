"""`apdm verify DIR`: check that a run's files are complete, can be loaded, and contain no data of a subject.

All files that the manifest lists are checked. Ids of subjects are searched for only in the model (pipeline folder and
single file). Elsewhere they are expected: protected photos lie in folders named by the ids, and results mention them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from apdm.audit import read_results
from apdm.audit.inputs.people import ATTACKER, CONSENTING, HOLDOUT, OTHER, PROTECTED, STRANGERS
from apdm.config import VerifyConfig
from apdm.config.continuation import options_hash
from apdm.config.groups.trackers import TRACKER_OPTIONS
from apdm.core.errors import UserError, one_line
from apdm.core.files import MARKER, WEIGHT_SUFFIXES, list_files, sha256_file
from apdm.data.photo_captions import all_captions
from apdm.data.photo_files import is_picture, name_of, printable, walk
from apdm.data.photo_sets import letter_of
from apdm.data.subjects import ONLY_SUBJECT, SAFE
from apdm.export.layout import (
    ATTACKER_CLASS_IMAGES,
    CELLS,
    CLASS_IMAGES,
    CONFIG,
    IMAGES,
    MANIFEST,
    MODEL,
    PARTNERS,
    PHOTO_CELLS,
    PHOTO_SOURCES,
    PICTURES,
    RESULTS,
    SAMPLES,
    SHIPPED,
    SINGLE_FILE,
)
from apdm.export.leaks import scan_for_leaks
from apdm.export.loading import Loading, ways_to_load
from apdm.export.manifest import verify_manifest
from apdm.export.metadata import read_metadata
from apdm.families import Family, load_family
from apdm.families.load import dtypes_in_single_file
from apdm.families.pipeline_folder import loadable_variants
from apdm.jobs.common.prepare import prepare_process
from apdm.jobs.common.results import VerifyResult
from apdm.jobs.hardening.checkpoint import is_checkpoint
from apdm.jobs.planning.plan import show_plan, verify_plan

HEADER_KEYS = re.compile(r"format|apdm\.(version|method|pairs|held_out|steps|config_sha256|base_sha256)")
PROMPT = "a photo of a person"  # of the pictures that are drawn
SIDE = 2  # of the pictures that are drawn, in multiples of the smallest that the model draws
NEEDLE_BYTES = 64  # a sequence of this many bytes of a photo does not appear in another file by chance
CAPTION_BYTES = 16  # a shorter caption may stand in any text
LONG_ID_BYTES = 6  # an id of this many bytes or more does not appear in large weights by chance
PHOTO_METADATA = ("exif", "xmp", "photoshop", "comment", "parameters", "Description", "Author", "icc_profile")
# In an audit's folder of subjects, these folders hold the folders of people. Their names are not ids.
GROUPS = {ATTACKER, HOLDOUT, OTHER, STRANGERS, CONSENTING, PROTECTED, SAFE}
# Usual names of folders that hold the folders of people. Every model card has some of these words.
PLACES = {"data", "dataset", "datasets", "faces", "images", "img", "people", "persons", "photos", "pictures"}
PLACES |= {"subjects", "train", "training"}
TEXTS = (".json", ".md", ".txt", ".yaml", ".html")


def verify(config: VerifyConfig) -> VerifyResult:
    """Check a folder that a run wrote. `apdm verify` and `apdm.verify` both run this function.

    Returns:
        The problems that were found.

    Raises:
        UserError: the folder has no manifest, or the folder of subjects holds no photos.
    """
    prepare_process(None)
    root = Path(config.output_dir)
    sought = Sought.below(config.subjects)
    problems = [*verify_manifest(root), *_options(root), *_unknown(root)]
    files = len(list_files(root))
    show_plan(verify_plan(config, sought.ids, sought.photos, captions=len(sought.captions), files=files))
    if (root / RESULTS).exists():
        problems += _complaint(lambda: read_results(root / RESULTS))
    model = [path for path in (root / MODEL, root / SINGLE_FILE) if path.exists()]
    if (root / MODEL).exists():
        problems += _loads(root, config.family)
    for path in model:
        problems += _metadata(path, root)
    problems += _photo_metadata(root / IMAGES, root)
    problems += _leaks(root, model, sought, [*_prompts(root), *config.prompts])
    ids, photos = len(sought.ids), len(sought.photos)
    return VerifyResult(
        output_dir=root, problems=tuple(problems), files=files, ids=ids, photos=photos, with_model=bool(model)
    )


# -- files and loading ---------------------------------------------------------------------------------------


def _options(root: Path) -> list[str]:
    """Report a config.yaml whose options are not those of the run that wrote the manifest, which has their hash."""
    try:
        said = json.loads((root / MANIFEST).read_text(encoding="utf-8")).get("config_sha256")
        same = not said or options_hash((root / CONFIG).read_text(encoding="utf-8")) == said
    except OSError:
        return []  # nobody needs the file for using the model
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        same = False
    mend = "it was changed, or a later run in this folder was not finished"
    return [] if same else [f"{CONFIG} is not that of the run that wrote the other files: {mend}"]


def _unknown(root: Path) -> list[str]:
    """Report files and folders that are neither shipped files nor working files of this program."""
    ours = {MANIFEST, MARKER, CONFIG, CLASS_IMAGES, ATTACKER_CLASS_IMAGES, CELLS, PHOTO_CELLS}
    ours |= {PARTNERS, PHOTO_SOURCES, PICTURES, SAMPLES}
    logs = _config(root).get("logging_dir") or TRACKER_OPTIONS["logging_dir"]
    ours |= {*Path(str(logs)).parts[:1], *SHIPPED}
    names = sorted(entry.name for entry in root.iterdir())
    unknown = [name for name in names if name not in ours and not is_checkpoint(name)]
    return [f"{name} is not in the manifest, nor a working file of this program" for name in unknown]


def _loads(root: Path, name: str | None) -> list[str]:
    """Report what keeps the model from being loaded, or from drawing, in any way that its card names.

    Args:
        name: the model's family, if the user named it.
    """
    model, file = root / MODEL, root / SINGLE_FILE
    loaded: list[Family] = []

    def load() -> None:
        variant = next(iter(loadable_variants(model)), None)
        loaded.append(load_family(model, family=name, variant=variant))
        if file.exists():
            load_family(file, family=name, variant=variant, single_file_config=model)

    problems = _complaint(load)
    if problems:
        return problems
    family = loaded.pop()
    dtypes = dtypes_in_single_file(file, type(family)).values() if file.exists() else None
    ways = ways_to_load(family, model, name=MODEL, single_file=dtypes)
    side = SIDE * family.size_multiple
    inputs = family.prompt_inputs([PROMPT])  # embeddings, and perhaps switches of the pipeline
    options = {option: value for option, value in inputs.items() if isinstance(value, bool | int | float)}
    del family  # makes room for the ways
    for way in ways:
        draw = partial(_draw, way, root, height=side, width=side, **options)
        problems += [f"{way.what} does not draw: {line}" for line in _complaint(draw)]
    return problems


@torch.no_grad()
def _draw(way: Loading, root: Path, **options: Any) -> None:
    """Load the model in one way and draw a picture.

    Args:
        options: the picture's size, and further arguments of the pipeline that the family needs.

    Raises:
        UserError: the picture is not finite, or the way leaves a part in training mode.
        Exception: whatever diffusers raises if parts do not fit together.
    """
    pipeline = way.load(root)
    training = [part for part, module in pipeline.components.items() if getattr(module, "training", False)]
    if training:
        raise UserError(f"{training[0]} is left in training mode, where dropout is active")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        prompt=PROMPT,  # the first argument of some pipelines is a picture
        num_inference_steps=2,
        **options,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    if not picture.isfinite().all():
        raise UserError("the picture has values that are not finite")


def _complaint(action: Callable[[], object]) -> list[str]:
    """The message of the exception that an action raises, as a list of one; an empty list if it raises none."""
    try:
        action()
    except Exception as error:  # whatever a damaged file makes a library raise
        return [one_line(error) or type(error).__name__]
    return []


# -- nothing of a subject ------------------------------------------------------------------------------------


def _metadata(path: Path, root: Path) -> Iterator[str]:
    """Report in a model: unknown entries in file headers, pickles, pictures, and paths of the machine."""
    for file in [path] if path.is_file() else list_files(path):
        name = file.relative_to(root).as_posix()
        if file.suffix == ".safetensors":
            try:
                keys = read_metadata(file)
            except (OSError, ValueError):
                continue  # the manifest or the loading has already reported it
            unknown = [key for key in keys if not HEADER_KEYS.fullmatch(key)]
            yield from (f"{name} has the unknown entry {key!r} in its header" for key in unknown)
        elif file.suffix in WEIGHT_SUFFIXES:
            yield f"{name} is a pickle, which can run code"
        elif is_picture(file):
            yield f"{name} is a picture inside a model"
        elif file.suffix == ".json" and _has_path(file):
            yield f"{name} holds a path of the machine that made it"


def _has_path(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and Path(str(values.get("_name_or_path", ""))).is_absolute()


def _photo_metadata(images: Path, root: Path) -> Iterator[str]:
    """Report protected photos that carry metadata, such as the place where they were taken."""
    for file in list_files(images) if images.is_dir() else []:
        if is_picture(file):
            try:
                with Image.open(file) as image:
                    found = [name for name in PHOTO_METADATA if name in image.info]
            except OSError:
                yield f"{file.relative_to(root).as_posix()} is no picture"
                continue
            if found:
                yield f"{file.relative_to(root).as_posix()} carries {', '.join(found)}"


@dataclass(frozen=True)
class Sought:
    """What is looked for in the files of a run.

    Attributes:
        ids: the ids of the subjects.
        photos: their photos.
        captions: what is written for these photos beside them.
    """

    ids: tuple[str, ...] = ()
    photos: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()

    @staticmethod
    def below(folder: str | None) -> Sought:
        """Find subjects and photos in a folder, at any depth. Links are followed.

        Each folder on the way to a photo counts as a subject, because people arrange their photos in many ways. Photos
        directly in `folder` belong to one subject.

        Raises:
            UserError: the folder does not exist or holds no photos, or captions cannot be read.
        """
        if folder is None:
            return Sought()
        root, ids, photos = Path(folder), set(), []
        for place, listing in walk(root):
            # Hidden pictures, and raw files beside a JPEG, are photos of a subject too.
            if found := [*listing.photos, *listing.unread, *filter(is_picture, listing.others)]:
                photos += found
                parts = place.relative_to(root).parts
                names = [printable(name) for name in parts if letter_of(Path(name)) is None]
                above = {name for name in names[:-1] if name.lower() not in PLACES}
                ids |= {ONLY_SUBJECT} if names in ([], [SAFE]) else above.union(names[-1:]) - GROUPS
        if not photos:
            raise UserError(f"{folder} holds no photos: there is nothing to look for")
        captions = [text for text in all_captions(photos) if len(text.encode()) >= CAPTION_BYTES]
        return Sought(tuple(sorted(ids)), tuple(photos), tuple(captions))


def _config(root: Path) -> dict[str, Any]:
    """Return the run's config.yaml; empty if the file cannot be read."""
    try:
        config = yaml.safe_load((root / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _prompts(root: Path) -> list[str]:
    """Return the instance prompts from the run's config.yaml; none if the file cannot be read."""
    config = _config(root)
    variety = config.get("variety")
    varied = variety.get("instance_prompts") if isinstance(variety, dict) else None
    prompts = [config.get("instance_prompt"), *(varied if isinstance(varied, list) else [])]
    return [prompt for prompt in prompts if isinstance(prompt, str) and prompt]


def _leaks(root: Path, model: Sequence[Path], sought: Sought, prompts: Sequence[str]) -> Iterator[str]:
    """Report photos and captions of subjects in the shipped files, and prompts and ids of subjects in the model.

    A caption that the run's configuration holds too is one of its prompts, and may stand in results.

    Args:
        model: the pipeline folder and the single file, if they exist.
        sought: the subjects' ids and photos.
        prompts: texts that must not be in the model.
    """
    shipped = [root / name for name in SHIPPED if (root / name).exists()]
    needles = dict(filter(None, map(_needle, sought.photos)))
    own = json.dumps(_config(root), ensure_ascii=False, default=str)
    captions = [caption for caption in sought.captions if json.dumps(caption, ensure_ascii=False)[1:-1] not in own]
    for path in shipped:
        for name, _ in scan_for_leaks(path, needles.values()):
            yield f"{_place(path, name)} holds bytes of a subject's photo"
        for name in dict.fromkeys(name for name, _ in scan_for_leaks(path, captions)):
            yield f"{_place(path, name)} holds a caption of a subject's photo"
    hashes = {sha256_file(photo) for photo in sought.photos}
    for path in _files(shipped):
        if sha256_file(path) in hashes:
            yield f"{path.relative_to(root).as_posix()} is a subject's photo as it was"
    for path in model:
        for name, _ in scan_for_leaks(path, prompts):
            yield f"{_place(path, name)} holds a prompt"
    # Tokenizers are not searched: their vocabulary has very many words, and an id may be one of them.
    files = [file for file in _files(model) if not file.parent.name.startswith("tokenizer")]
    for subject in sought.ids:
        for file in files:
            whole = len(subject.encode()) >= LONG_ID_BYTES and scan_for_leaks(file, [subject])
            if whole or _mentions(file, subject):
                yield f"{file.relative_to(root).as_posix()} holds the id of a subject, {subject}"


def _needle(photo: Path) -> tuple[str, bytes] | None:
    """Return a photo's path and NEEDLE_BYTES bytes from the middle of the file, away from header and padding.

    Returns None if the bytes are too uniform to identify the photo.
    """
    try:
        content = photo.read_bytes()
    except OSError as error:
        raise UserError(f"{name_of(photo)} cannot be read: {error.strerror}") from None
    middle = len(content) // 2
    needle = content[middle : middle + NEEDLE_BYTES]
    return (str(photo), needle) if len(set(needle)) > NEEDLE_BYTES // 4 else None


def _mentions(file: Path, text: str) -> bool:
    """Whether an id occurs as a whole word in a file's name, text or header.

    The tensors themselves are not searched, because they contain short texts by chance. An id that consists of digits
    is searched for only in file names, and in JSON as a complete text, because numbers occur in every file.
    """
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])")
    if word.search(printable(file.name)):
        return True
    try:
        if file.suffix == ".json":
            return any(map(word.fullmatch if text.isdigit() else word.search, _texts(json.loads(file.read_bytes()))))
        if text.isdigit():
            return False
        if file.suffix == ".safetensors":
            return any(word.search(_composed(f"{key} {value}")) for key, value in read_metadata(file).items())
        return file.suffix in TEXTS and bool(word.search(_composed(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return False


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, including the keys, with composed accents as ids have them."""
    if isinstance(value, str):
        yield _composed(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield _composed(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield these files, and all files in these folders."""
    for path in paths:
        yield from [path] if path.is_file() else list_files(path)


def _place(path: Path, name: str) -> str:
    """Return the name of a shipped file for messages. `name` is its path inside `path`, if `path` is a folder."""
    return path.name if path.is_file() else f"{path.name}/{name}"
