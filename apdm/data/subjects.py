"""Photos from disk: a folder of subjects, and a list of photos as one tensor.

    <instance_data_dir>/<id>/*.jpg|jpeg|png|webp     a subject; its id is the name of the folder
    <instance_data_dir>/<id>/safe/*                  optional partners, one for each photo, with the same name
    <instance_data_dir>/*.jpg|jpeg|png|webp          photos directly in the folder: a single subject, "s01"

Hidden files and files that are no pictures are ignored. A photo that cannot be used is an error. It is never skipped,
because the person in a skipped photo would stay unprotected without anybody noticing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from apdm.core.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
# Pictures of these kinds cannot be read. They are reported as errors, because the user expects them to be protected.
OTHER_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff"}
)
FORMATS = ("JPEG", "PNG", "WEBP")
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
    """

    id: str
    images: list[Path]
    safe: list[Path] | None = None


def find_subjects(instance_data_dir: str | Path) -> list[Subject]:
    """Return the subjects of a folder, sorted by id. Only file names are read; `load_images` reads the photos.

    Raises:
        UserError: there is no such folder, a subject has no photos, or photos and their safe partners do not match.
    """
    root = Path(instance_data_dir)
    if list_images(root):
        return [_subject(root, ONLY_SUBJECT)]
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not folders:
        raise UserError(f"{root} holds no photos; put them in {root}/<subject id>/, as .jpg, .png or .webp")
    if SAFE in [folder.name for folder in folders]:
        raise UserError(f"{root}/{SAFE} belongs to no subject; partners go into {root}/<subject id>/{SAFE}/")
    return [_subject(folder, folder.name) for folder in folders]


def list_images(folder: str | Path) -> list[Path]:
    """Return the photos that lie directly in a folder, sorted by name.

    Raises:
        UserError: there is no such folder, or it holds a picture of a kind that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist; give one that holds photos")
    files = [entry for entry in _visible(root) if not entry.is_dir()]
    for file in files:
        if file.suffix.lower() in OTHER_SUFFIXES:
            raise UserError(f"{_name(file)} is of a kind that is not read; save it as JPEG, PNG or WebP")
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def load_images(paths: Sequence[Path], resolution: int) -> Tensor:
    """Return photos as a trainer sees them: upright, in RGB, cut to a centred square.

    The shorter side is resized to `resolution` with Lanczos, and the longer side is cropped equally at both ends, so
    the aspect ratio is kept. Every photo is decoded completely, so calling this before long work finds every bad file.

    Args:
        paths: N photos: JPEG, PNG or WebP, of any colour mode, 8 or 16 bits, with or without transparency.
        resolution: R, the side of the squares in pixels.

    Returns:
        `[N, 3, R, R]` float32 in [-1, 1].

    Raises:
        UserError: there are no photos, or one is unreadable, truncated, too small or too large.
    """
    if not paths:
        raise UserError("there are no photos to load")
    squares = [ImageOps.fit(read_image(path), (resolution, resolution), Image.Resampling.LANCZOS) for path in paths]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def read_image(path: Path) -> Image.Image:
    """Return one photo upright, in 8-bit sRGB; transparent parts become white.

    The photo's colour profile is applied, because saved pictures carry none. Without this, the wide colours of phones
    would come out too pale.

    Raises:
        UserError: the photo is unreadable, truncated, too small or too large.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{_name(path)} is empty (0 bytes); replace or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size is stricter
            image = Image.open(path, formats=FORMATS)
        with image:
            _check_size(path, image.size)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{_name(path)} is not a JPEG, PNG or WebP picture; replace or remove it") from None
    except Image.DecompressionBombError:
        raise UserError(_too_large(path)) from None
    except PermissionError:
        raise UserError(f"{_name(path)} cannot be read: permission denied") from None
    except FileNotFoundError:
        raise UserError(f"{_name(path)} does not exist") from None
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


def _subject(folder: Path, subject: str) -> Subject:
    images = list_images(folder)
    if not images:
        raise UserError(f'subject "{subject}" has no photos; add some or remove the folder')
    for inner in _visible(folder):
        if inner.is_dir() and inner.name != SAFE and list_images(inner):
            raise UserError(
                f'subject "{subject}" has photos in the inner folder "{inner.name}"; '
                "give every subject one folder, with all its photos directly in it"
            )
    return Subject(subject, images, _partners(subject, images, folder / SAFE))


def _partners(subject: str, images: list[Path], folder: Path) -> list[Path] | None:
    """Return the safe partners in `folder`, in the order of `images`; None if there is no such folder."""
    if not folder.is_dir():
        return None
    photos, partners = _by_stem(subject, images), _by_stem(subject, list_images(folder))
    lonely = [f"{SAFE}/{stem}" for stem in photos if stem not in partners]
    lonely += [stem for stem in partners if stem not in photos]
    if lonely:
        raise UserError(
            f'subject "{subject}" lacks {", ".join(lonely)}: photos and {SAFE}/ partners are paired by name'
        )
    return [partners[stem] for stem in photos]


def _by_stem(subject: str, paths: list[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise UserError(
                f'subject "{subject}" has both {stems[path.stem].name} and {path.name}; '
                "partners are paired by the name before the dot: rename one"
            )
        stems[path.stem] = path
    return stems


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


def _name(path: Path) -> str:
    """Return "<subject id>/<file name>" of a photo: enough to find it, without paths of the machine."""
    return "/".join(path.parts[-3 if path.parent.name == SAFE else -2 :])
