"""Which files in a folder are photos. The content decides, because people have photos with all kinds of names.

A file is a photo if its name ends like that of a picture, or if Pillow recognises its content. Raw files of cameras,
and pictures that Pillow cannot read, are listed apart: whoever uses the folder must refuse them, because the person in
a photo that is silently left out would stay unprotected. An unread picture beside a photo of the same name is no harm,
and counts among the other files. All other files, such as captions and videos, are no photos.
Hidden pictures, and those in hidden folders, count among these. Other hidden files, and what operating systems leave
in folders, are not listed.
"""

from __future__ import annotations

import importlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from apdm.core.errors import UserError
from apdm.core.files import MARKER

# Files and folders of operating systems and of archive programs, in small letters.
LITTER = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "lost+found", "@eadir", "#recycle"),
    }
)
# Pillow may read a raw file as a TIFF picture, but it then sees only the small preview. So the name decides.
RAW_SUFFIXES = frozenset(
    {
        *(".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".cs1", ".dcr", ".dcs", ".dng", ".drf", ".eip", ".erf"),
        *(".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx"),
        *(".raf", ".raw", ".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f"),
    }
)
# Other pictures that Pillow may not read; some of them it reads with a plugin.
OTHER_SUFFIXES = frozenset({".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".wdp"})
MORE_SUFFIXES = frozenset({".jpe", ".jfif", ".mpo", ".jps"})  # further names of JPEG files
PLUGINS = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}  # {module: package}
# Formats that are no pixels: Pillow knows them only by name, or starts another program to draw them.
NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# (position, bytes, kind) of pictures that Pillow does not read. The position is that of the bytes in the file.
SIGNATURES = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1")),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    *((0, start, "raw") for start in (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM")),
    (4, b"ftypcrx ", "raw"),
    (8, b"CR\x02\0", "raw"),
)
RAW_TAGS = (0xC612, 0x828E)  # of TIFF files: the version of DNG, the colour filters of a sensor
SUBFILE_TYPE, PREVIEW = 0xFE, 1  # a tag of TIFF files, and the bit of it that means "this is a small copy"
NAME_BYTES = 230  # a file system allows 255, and a file has a longer name while it is written
SHOWN = 5  # files that a message names


@dataclass(frozen=True)
class Listing:
    """What lies directly in a folder, each sorted by name.

    Attributes:
        photos: the photos. Some may turn out to be damaged when they are read.
        unread: pictures of a kind that is not read.
        others: files that are no pictures.
        folders: the folders.
    """

    photos: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def require_read(self) -> Listing:
        """Return this listing. Raises UserError if there are pictures of a kind that is not read."""
        if self.unread:
            which = "is of a kind that is not read" if len(self.unread) == 1 else "are of kinds that are not read"
            raise UserError(f"{name_some(self.unread)} {which}: {'; '.join(dict.fromkeys(map(mend, self.unread)))}")
        return self


def list_folder(folder: Path) -> Listing:
    """List a folder. Links are followed.

    Raises:
        UserError: the folder or a file in it cannot be read, or a link that may be a photo or a folder leads nowhere.
    """
    if not folder.is_dir():
        wrong = f"{folder} is no folder" if folder.exists() else f"folder {folder} does not exist"
        raise UserError(f"{wrong}; give one that holds photos")
    found = Listing()
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if is_litter(entry.name):
            _sort_in_hidden(entry, found)
        else:
            _sort_in(entry, found)
    return _without_pairs(found)


def walk(folder: Path) -> Iterator[tuple[Path, Listing]]:
    """Yield a folder and all folders below it, each with its listing. Each real folder is visited once.

    Output folders of this program, with their pictures, are left out.
    """
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real not in seen:
            seen.add(real)
            listing = list_folder(place)
            yield place, listing
            waiting += [inner for inner in reversed(listing.folders) if not os.path.exists(inner / MARKER)]


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was left by an operating system or an archive program."""
    return name.startswith(".") or name.lower() in LITTER


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, readable or not, by its name or its content."""
    found = Listing()
    _sort_in(path, found)
    return bool(found.photos or found.unread)


def stem(path: Path) -> str:
    """Return the name of a photo without its suffix.

    What follows a dot is a suffix only if it is that of a picture. So "2024.05 Rome" and "2024.06 Paris" are different
    names. The result is in Unicode's composed form (NFC), because the same name may come in two forms.
    """
    known = suffix(path) in picture_suffixes()
    return unicodedata.normalize("NFC", path.stem if known else path.name)


def suffix(path: Path) -> str:
    """Return the suffix of a file in small letters. Spaces after it, which archive programs leave, are dropped."""
    return path.suffix.strip().lower()


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read: those of Pillow and of its installed plugins, without those that are no pixels."""
    Image.init()
    for name in PLUGINS:
        try:
            plugin = importlib.import_module(name)
            getattr(plugin, "register_heif_opener", lambda: None)()
        except Exception:  # not installed, or not made for this Pillow: then its pictures are refused by name
            continue
    return tuple(name for name in Image.OPEN if name not in NO_PIXELS)


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of all pictures, whether they can be read or not."""
    readable = set(formats())
    known = {name for name, kind in Image.registered_extensions().items() if kind in readable}
    return frozenset(known | MORE_SUFFIXES | OTHER_SUFFIXES | RAW_SUFFIXES)


def unread_kind(path: Path) -> str | None:
    """Return the kind of a picture that Pillow does not read, by its first bytes, such as "HEIC"; None if unknown."""
    with open(path, "rb") as file:
        head = file.read(32)
    return next((kind for at, start, kind in SIGNATURES if head[at:].startswith(start)), None)


def mend(path: Path) -> str:
    """Say what to do with a file that Pillow does not read."""
    kind = "raw" if suffix(path) in RAW_SUFFIXES else unread_kind(path)
    if kind == "raw":
        return "export raw files as JPEG, or move them elsewhere"
    if kind or suffix(path) in OTHER_SUFFIXES:
        return (
            f"save it as JPEG or PNG, or install Pillow's plugins for HEIC and JPEG XL ({', '.join(PLUGINS.values())})"
        )
    return "replace or remove it"


def is_preview(image: Image.Image) -> bool:
    """Whether an open picture is the small preview of a raw file."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return tags is not None and (any(tag in tags for tag in RAW_TAGS) or bool(tags.get(SUBFILE_TYPE, 0) & PREVIEW))


def name_of(path: Path, levels: int = 2) -> str:
    """Return the last parts of a path, enough to find the file, in characters that can be printed."""
    return printable("/".join(path.parts[-levels:]))


def name_some(paths: Sequence[Path], shown: int = SHOWN) -> str:
    """Return the names of files, or of the first ones and the number of the others."""
    names = ", ".join(name_of(path) for path in paths[:shown])
    return names + (f" and {len(paths) - shown} more" if len(paths) > shown else "")


def printable(name: str) -> str:
    """Return a file's name in NFC. Bytes that are not UTF-8, and control characters, are written as escapes."""
    with suppress(UnicodeEncodeError):  # of a text that is no file's name, in a process whose file names are ASCII
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFC", name)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def subject_id(folder: Path) -> str:
    """Return the id of the subject whose photos lie in a folder: its name, in characters that every output can hold.

    Raises:
        UserError: this process cannot write files of that name.
    """
    found = printable(folder.name)
    try:
        if len(os.fsencode(found)) > NAME_BYTES:
            raise UserError(f"the name of the folder {found} is too long; rename it")
    except UnicodeEncodeError:
        raise UserError(f"folder {ascii(found)} cannot be written to in this locale; set PYTHONUTF8=1") from None
    return found


def passed_over(folders: Sequence[Path], read: Collection[str] = ()) -> str | None:
    """Say which files in and below folders are no photos, counted by their suffix; None if there are none.

    Files whose names end with one of `read` are left out, because something else reads them.
    """
    others = [path for listing in _listings(folders) for path in listing.others if not path.name.endswith(tuple(read))]
    kinds = Counter(map(_kind, others))
    examples = {_kind(path): name_of(path) for path in reversed(others)}
    return ", ".join(f"{number} {kind} (such as {examples[kind]})" for kind, number in sorted(kinds.items())) or None


def moving(folders: Sequence[Path]) -> list[Path]:
    """Return the animated pictures in and below folders, and those of several pages: only their first frame is read."""
    found = []
    for path in [path for listing in _listings(folders) for path in listing.photos]:
        try:
            with _quiet(), Image.open(path, formats=formats()) as image:
                # A phone's MPO file holds further views of the same moment, such as a map of the depth.
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    found.append(path)
        except Exception:  # whoever reads the photo says what is wrong with it
            continue
    return found


def _listings(folders: Sequence[Path]) -> Iterator[Listing]:
    """Yield the listings of folders and of all folders below them, each real folder once."""
    seen = set()
    for folder in folders:
        for place, listing in walk(folder):
            if (real := os.path.realpath(place)) not in seen:
                seen.add(real)
                yield listing


def _kind(path: Path) -> str:
    return printable(suffix(path)) or "without a suffix"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of Pillow about odd metadata and about sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sort_in(entry: Path, found: Listing) -> None:
    """Add a file or folder to the list where it belongs."""
    named = suffix(entry) in picture_suffixes()
    try:
        if entry.is_dir():
            found.folders.append(entry)
        elif not entry.exists() and (named or not suffix(entry)):  # without a suffix, it may be a person's folder
            raise UserError(f"{name_of(entry)} is a link that leads nowhere; replace or remove it")
        elif not entry.is_file():
            found.others.append(entry)
        elif suffix(entry) in RAW_SUFFIXES:
            found.unread.append(entry)
        elif named and suffix(entry) not in OTHER_SUFFIXES or _opens(entry):
            found.photos.append(entry)
        else:
            (found.unread if named or unread_kind(entry) else found.others).append(entry)
    except OSError as error:
        raise UserError(f"{name_of(entry)} cannot be read: {error.strerror or error}") from None


def _without_pairs(found: Listing) -> Listing:
    """Count an unread picture beside a photo of the same name among the other files.

    Cameras write such pairs, IMG_1.CR2 and IMG_1.JPG, of one and the same shot.
    """
    names = {stem(photo).casefold() for photo in found.photos}
    paired = [path for path in found.unread if stem(path).casefold() in names]
    unread = [path for path in found.unread if path not in paired]
    return Listing(found.photos, unread, sorted([*found.others, *paired]), found.folders)


def _sort_in_hidden(entry: Path, found: Listing) -> None:
    """Add a hidden picture, or those directly in a hidden folder, to the files that are passed over.

    Raises:
        UserError: the file stands for a photo that is still in a cloud.
    """
    absent = entry.name.startswith(".") and suffix(entry) == ".icloud"
    if absent and suffix(Path(entry.stem)) in picture_suffixes():
        raise UserError(f"{name_of(entry)} stands for a photo that iCloud has not downloaded; download it")
    with suppress(OSError):
        inner = sorted(entry.iterdir()) if entry.is_dir() and entry.name.lower() not in LITTER else [entry]
        found.others.extend(file for file in inner if file.is_file() and _opens(file))


def _opens(path: Path) -> bool:
    """Whether Pillow recognises a file by its first bytes. Formats that have no mark of their own do not count."""
    marked = [name for name in formats() if Image.OPEN[name][1] is not None]
    try:
        with _quiet(), Image.open(path, formats=marked):
            return True
    except Image.DecompressionBombError:
        return True  # it is refused for its size when it is read
    except PermissionError:
        raise
    except Exception:  # readers raise nearly anything on a file that only begins like a picture
        return False
