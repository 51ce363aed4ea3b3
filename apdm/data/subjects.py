"""Photos from disk: a folder of subjects, and a list of photos as one tensor.

    <instance_data_dir>/<id>/*           the photos of a subject; its id is the name of the folder
    <instance_data_dir>/<id>/safe/*      optional partners, one for each photo, with the same name
    <instance_data_dir>/*                photos directly in the folder: a single subject, "s01"
    <instance_data_dir>/<id>/set_A/*     the layout of Anti-DreamBooth's data; see `apdm.data.photo_sets`

`apdm.data.photo_files` says which files are photos. A photo that cannot be used is an error, and so is a photo in a
place where nobody looks for it. It is never skipped, because the person in a skipped photo would stay unprotected
without anybody noticing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from apdm.core.errors import Faults, UserError, each
from apdm.core.files import MARKER
from apdm.data import photo_sets
from apdm.data.photo_files import (
    Listing,
    formats,
    is_preview,
    list_folder,
    mend,
    name_of,
    name_some,
    printable,
    stem,
    subject_id,
    walk,
)
from apdm.data.photo_sets import first_with_pictures

MIN_SIDE = 16
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte in RGB, Pillow's own limit
SAFE = "safe"
ONLY_SUBJECT = "s01"


@dataclass(frozen=True)
class Subject:
    """A person, or anything else that models must not learn, with its photos.

    Attributes:
        id: the name that stands for the subject in all outputs.
        images: the photos, sorted by file name.
        safe: the partner of each photo, in the same order; None if there is no folder `safe/`.
        named: whether the id is the name of a folder. Nobody gave a name to the only subject of a folder.
    """

    id: str
    images: list[Path]
    safe: list[Path] | None = None
    named: bool = field(default=True, compare=False)


def find_subjects(
    instance_data_dir: str | Path,
    *,
    besides: Collection[Path] = (),
    chosen: photo_sets.Chosen = photo_sets.PROTECTED_SET,
) -> list[Subject]:
    """Return the subjects of a folder, sorted by id. Photos are found but not read; `load_images` reads them.

    Args:
        instance_data_dir: the folder.
        besides: folders directly in it that are no subjects.
        chosen: which set to use if the photos of each subject lie in sets, and which part of the photos if not.

    Raises:
        UserError: there is no such folder, a subject has no photos, photos lie where nobody looks for them, photos and
            their safe partners do not match, a subject does not have the chosen set, or too few photos to hold some
            out.
    """
    root, other_roles = Path(instance_data_dir), {os.path.realpath(folder) for folder in besides}
    top = list_folder(root)
    require_read(top)
    if sets := photo_sets.sets_in(top):
        return [_subject_with_sets(root, ONLY_SUBJECT, top, sets, chosen, called=str(root), named=False)]
    folders = [folder for folder in top.folders if os.path.realpath(folder) not in other_roles]
    if top.photos:
        if hidden := [folder for folder in folders if folder.name != SAFE and first_with_pictures(folder)]:
            raise UserError(
                f"{root} holds loose photos ({name_some(top.photos, 1)}) beside folders with photos "
                f"({name_some(hidden, 1)}); put every photo into the folder of the person whom it shows"
            )
        return [_part(_subject(root, ONLY_SUBJECT, called=str(root), named=False), root, chosen)]
    if not folders:
        raise UserError(
            f"{root} holds no photos{_only(top.others)}; put them in {root}/<subject id>/, as JPEG, PNG or WebP"
        )
    if SAFE in [folder.name for folder in folders]:
        raise UserError(f"{root}/{SAFE} belongs to no subject; partners go into {root}/<subject id>/{SAFE}/")
    named: dict[str, Path] = {}
    for folder in folders:
        if os.path.exists(folder / MARKER):  # not of a folder that may not be read: `list_folder` says so
            raise UserError(f"{folder} is an output folder of apdm among the subjects; move it elsewhere")
        if named.setdefault(subject_id(folder), folder) is not folder:
            raise UserError(f"{root} has two folders that read {subject_id(folder)}; rename one, or put them together")
    layouts = {subject: photo_sets.sets_in(list_folder(folder)) for subject, folder in named.items()}
    with_sets, without = ([name for name in sorted(named) if bool(layouts[name]) is has] for has in (True, False))
    if with_sets and without:
        raise UserError(
            f"{root} mixes two layouts: the photos of {with_sets[0]} lie in sets, those of {without[0]} do not; give "
            "them two folders, or sort all photos in the same way"
        )

    def subject_of(name: str) -> Subject:
        folder, called = named[name], f'subject "{name}"'
        if layouts[name]:
            return _subject_with_sets(folder, name, list_folder(folder), layouts[name], chosen, called=called)
        return _part(_subject(folder, name, called=called), root, chosen)

    return _each_subject(sorted(named), subject_of)


def _each_subject(names: Sequence[str], find: Callable[[str], Subject]) -> list[Subject]:
    """Return each subject. If one cannot be used, what is wrong with the photos of the others is told too."""
    with Faults() as faults:
        subjects = [faults.of(partial(find, name)) for name in names]
        if faults.found:
            usable = [subject for subject in subjects if subject is not None]
            faults.of(lambda: each([path for one in usable for path in [*one.images, *(one.safe or [])]], read_image))
    return subjects


def list_images(folder: str | Path) -> list[Path]:
    """Return the photos that lie directly in a folder, sorted by name.

    Raises:
        UserError: there is no such folder, or it holds a picture of a kind that cannot be read.
    """
    listing = list_folder(Path(folder))
    require_read(listing)
    return listing.photos


def list_all_images(folder: str | Path) -> list[Path]:
    """Return all photos in a folder and in all folders below it, whoever they show.

    Raises:
        UserError: there is no such folder, it holds no photos, or a picture of a kind that cannot be read.
    """
    listings = [listing for _, listing in walk(Path(folder))]
    require_read(*listings)
    photos = [photo for listing in listings for photo in listing.photos]
    if not photos:
        raise UserError(f"{folder} holds no photos; put some in, or leave the option out")
    return photos


def require_read(*listings: Listing) -> None:
    """Raise UserError if there are pictures of a kind that is not read; then all others that cannot be read are told.

    If all are of kinds that are read, none is read here.
    """
    with Faults() as faults:
        for listing in listings:
            faults.of(listing.require_read)
        if faults.found:
            faults.of(lambda: each([photo for listing in listings for photo in listing.photos], read_image))


def load_images(paths: Sequence[Path], resolution: int) -> Tensor:
    """Return photos as a trainer sees them, in 8 bits: upright, in RGB, cut to a centred square.

    The shorter side is resized to `resolution` with Lanczos, and the longer side is cropped equally at both ends, so
    the aspect ratio is kept. Every photo is decoded completely, so calling this before long work finds every bad file.

    Args:
        paths: N photos in formats that Pillow reads, of any colour mode, 8 or 16 bits, with or without transparency.
        resolution: R, the side of the squares in pixels.

    Returns:
        `[N, 3, R, R]`, uint8. `apdm.core.pictures` makes floats of a part of them.

    Raises:
        UserError: there are no photos, or one is unreadable, truncated, too small or too large.
    """
    if not paths:
        raise UserError("there are no photos to load")
    size = (resolution, resolution)
    images = torch.empty(len(paths), 3, *size, dtype=torch.uint8)

    def read(image: Tensor, path: Path) -> None:
        square = ImageOps.fit(read_image(path), size, Image.Resampling.LANCZOS)
        image.copy_(torch.from_numpy(np.array(square)).permute(2, 0, 1))

    each(zip(images, paths, strict=True), lambda pair: read(*pair))
    return images


def read_image(path: Path) -> Image.Image:
    """Return one photo upright, in 8-bit sRGB; transparent parts become white.

    The photo's colour profile is applied, because saved pictures carry none. Without this, the wide colours of phones
    would come out too pale.

    Raises:
        UserError: the photo is unreadable, truncated, too small or too large.
    """
    try:
        if not path.is_file():
            raise UserError(f"{_name(path)} {'is no file' if path.exists() else 'does not exist'}")
        if path.stat().st_size == 0:
            raise UserError(f"{_name(path)} is empty (0 bytes); replace or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # _check_size is stricter about size; odd metadata does not matter
            with Image.open(path, formats=formats()) as image:
                _check_size(path, image.size)
                if is_preview(image):
                    raise UserError(f"{_name(path)} is a raw file of a camera; export it as JPEG")
                if image.mode in ("F", "LAB"):
                    raise UserError(f"{_name(path)} has colours of the kind {image.mode}, which is not read; use RGB")
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except (UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{_name(path)} is not a picture that can be read; {mend(path)}") from None
    except Image.DecompressionBombError:
        raise UserError(_too_large(path)) from None
    except PermissionError:
        raise UserError(f"{_name(path)} cannot be read: permission denied") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise UserError(f"{_name(path)} is damaged ({type(error).__name__}); replace or remove it") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        wide = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
    image = _in_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture from its colour profile to sRGB.

    The picture is returned unchanged if it has no profile, the sRGB profile, or a profile that cannot be used.
    """
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        converted = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        return image
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted or image


def _check_size(path: Path, size: tuple[int, int]) -> None:
    """Check the size that the file's header states, before any pixel is decoded."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(path))
    if min(size) < MIN_SIDE:
        raise UserError(f"{_name(path)} is {width}x{height}; a photo needs {MIN_SIDE} pixels on its shorter side")


def _too_large(path: Path) -> str:
    return f"{_name(path)} has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller"


def _subject_with_sets(
    folder: Path,
    subject: str,
    listing: Listing,
    sets: dict[str, Path],
    chosen: photo_sets.Chosen,
    *,
    called: str,
    named: bool = True,
) -> Subject:
    """Return the subject whose photos lie in the sets of a folder, with the photos of the chosen set."""
    if listing.photos:
        raise UserError(
            f"{called} has loose photos ({name_some(listing.photos, 1)}) beside its sets; move them into one of these"
        )
    _refuse_inner(folder, called, [inner for inner in listing.folders if inner not in sets.values()])
    place = photo_sets.choose(sets, chosen, called=called)
    return _subject(place, subject, called=f"{called}, {printable(place.name)},", named=named)


def _subject(folder: Path, subject: str, *, called: str, named: bool = True) -> Subject:
    """Return the subject whose photos lie in a folder. `called` names it in messages."""
    listing, partners = list_folder(folder), [list_folder(folder / SAFE)] if (folder / SAFE).is_dir() else []
    require_read(listing, *partners)
    _refuse_inner(folder, called, [inner for inner in listing.folders if inner.name != SAFE])
    if not listing.photos:
        raise UserError(f"{called} has no photos{_only(listing.others)}; add some or remove the folder")
    return Subject(subject, listing.photos, _partners(called, listing.photos, folder / SAFE), named)


def _part(subject: Subject, root: Path, chosen: photo_sets.Chosen) -> Subject:
    """Return the subject with the chosen part of its photos and their partners."""
    part = chosen.of(subject.images, folder=root, subject=subject.id)
    return replace(subject, images=subject.images[part], safe=subject.safe and subject.safe[part])


def _refuse_inner(folder: Path, called: str, inner: Sequence[Path]) -> None:
    """Raise UserError if there are photos in or below the folders `inner`, where nobody would look for them."""
    for place in filter(None, map(first_with_pictures, inner)):
        raise UserError(
            f'{called} has photos in the inner folder "{printable(place.relative_to(folder).as_posix())}"; '
            "give every subject one folder, with all its photos directly in it, and name the folder above these"
        )


def _only(others: Sequence[Path]) -> str:
    return f", only {name_some(others)}" if others else ""


def _partners(called: str, images: list[Path], folder: Path) -> list[Path] | None:
    """Return the safe partners in `folder`, in the order of `images`; None if there is no such folder."""
    if not folder.is_dir():
        return None
    listing = list_folder(folder)
    _refuse_inner(folder.parent, called, listing.folders)
    photos, partners = _by_stem(called, images), _by_stem(called, listing.photos)
    lonely = [f"{SAFE}/{name}" for name in photos if name not in partners]
    lonely += [name for name in partners if name not in photos]
    if lonely:
        names = ", ".join(map(printable, lonely))
        raise UserError(f"{called} lacks {names}: photos and {SAFE}/ partners are paired by name")
    return [partners[name] for name in photos]


def _by_stem(called: str, paths: list[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(stem(path), path)
        if other is not path:
            raise UserError(
                f"{called} has both {name_of(other, 1)} and {name_of(path, 1)}; "
                "partners are paired by the name before the dot: rename one"
            )
    return stems


def _name(path: Path) -> str:
    """Return "<subject id>/<file name>" of a photo: enough to find it, without paths of the machine."""
    inner = [SAFE] if path.parent.name == SAFE else []
    levels = 2 + len(inner) + (photo_sets.letter_of(path.parents[len(inner)]) is not None)
    return name_of(path, levels)
