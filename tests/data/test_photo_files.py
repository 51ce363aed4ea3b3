"""Which files count as photos: the names and contents that people's folders have."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from ordinary_user import ordinary_user
from PIL import Image

from apdm.audit.inputs.people import PhotoFolders
from apdm.config import AuditConfig
from apdm.core.errors import UserError
from apdm.data.photo_files import (
    formats,
    is_picture,
    list_folder,
    moving,
    name_some,
    passed_over,
    printable,
    stem,
    walk,
)
from apdm.data.subjects import find_subjects, list_all_images, list_images, load_images


def picture(path: Path, kind: str = "PNG", **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(path, format=kind, **save)
    return path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpe", "JPEG"),
        ("a.JFIF", "JPEG"),
        ("a.mpo", "MPO"),
        ("a.apng", "PNG"),
        ("a.gif", "GIF"),
        ("a.bmp", "BMP"),
        ("a.tif", "TIFF"),
        ("a.jp2", "JPEG2000"),
        ("a.avif", "AVIF"),
        ("a.tga", "TGA"),
        ("a.ppm", "PPM"),
        ("a.heic", "JPEG"),  # as phones and messengers rename them
        ("a.jpg", "PNG"),
        ("IMG_0001", "JPEG"),
        ("a.jpg ", "JPEG"),
        ("a.jpg.bak", "JPEG"),
        ("a.jpg_large", "JPEG"),
        ("2024.05.12 Rome", "WEBP"),
        ("a.txt", "PNG"),
        ("aux.png", "PNG"),
        ("-rf.png", "PNG"),
        ("a\nb.png", "PNG"),
        ("é ☕.png", "PNG"),
    ],
)
def test_a_picture_that_pillow_reads_is_a_photo_whatever_its_name(tmp_path: Path, name: str, kind: str):
    path = picture(tmp_path / "s01" / name, kind)
    (subject,) = find_subjects(tmp_path)
    assert subject.images == [path] == list_images(path.parent) and is_picture(path)
    red, green, _ = load_images(subject.images, 16)[0, :, 8, 8]
    assert red > 240 and green < 15
    assert passed_over([tmp_path]) is None


# The first bytes of files by the descriptions of their formats: of Fujifilm, Panasonic, Olympus and Canon (CR3), and
# of JPEG XL (bare and in a box), JPEG XR and AVIF.
RAW_STARTS = (b"FUJIFILMCCD-RAW 0201", b"IIU\0\x18", b"IIRO\x08", b"\0\0\0\x18ftypcrx \0\0\0\1")
OTHER_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", b"II\xbc\x01", b"\0\0\0\x1cftypavif")


@pytest.mark.parametrize(
    ("name", "head", "mend"),
    [
        *(
            (f"a.{raw}", b"raw", "export raw files as JPEG")
            for raw in ["cr2", "CR3", "nef", "arw", "raf", "orf", "rw2", "dng"]
        ),
        ("a.hif", b"?", "plugins"),
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(20), "plugins for HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(20), "plugins for HEIC and JPEG XL"),
        ("IMG_0001", b"\0\0\0\x18ftypmif1" + bytes(20), "plugins for HEIC"),
        ("a.bin", b"II*\0\x10\0\0\0CR\x02\0" + bytes(20), "export raw files as JPEG"),
        *((f"b{i}", start + bytes(20), "export raw files as JPEG") for i, start in enumerate(RAW_STARTS)),
        *((f"c{i}", start + bytes(20), "plugins for HEIC and JPEG XL") for i, start in enumerate(OTHER_STARTS)),
    ],
)
def test_a_picture_that_pillow_does_not_read_is_refused_by_name(tmp_path: Path, name: str, head: bytes, mend: str):
    picture(tmp_path / "s01/1.png")
    (tmp_path / "s01" / name).write_bytes(head)
    for look in (lambda: find_subjects(tmp_path), lambda: list_images(tmp_path / "s01")):
        with pytest.raises(UserError, match=f"^s01/{name} is of a kind that is not read: .*{mend}"):
            look()
    assert is_picture(tmp_path / "s01" / name)


def test_a_raw_file_beside_its_jpeg_is_counted_and_not_refused(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG_1.JPG")
    for name in ("IMG_1.CR2", "img_1.cr3", "IMG_2.CR2"):
        (tmp_path / name).write_bytes(b"raw")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.photos] == ["IMG_1.JPG"]
    assert [path.name for path in listing.others] == ["IMG_1.CR2", "img_1.cr3"]
    assert [path.name for path in listing.unread] == ["IMG_2.CR2"]


def test_raw_files_are_refused_although_pillow_would_read_their_preview(tmp_path: Path):
    for suffix in ("nef", "dng", "arw"):
        picture(tmp_path / f"a.{suffix}", "TIFF")
    for number in range(9):
        (tmp_path / f"b{number}.hif").touch()
    with pytest.raises(UserError, match=r"a.arw, .*a.dng, .*a.nef, .*b0.hif, .*b1.hif and 7 more are of kinds"):
        list_images(tmp_path)


def test_what_is_no_picture_is_passed_over_and_counted_by_kind(tmp_path: Path):
    picture(tmp_path / "ann/1.png")
    for name in (
        "ann/1.txt",
        "ann/2.txt",
        "ann/1.json",
        "ann/clip.mov",
        "ann/notes",
        "ann/empty",
        "ann/a.pdf",
        "x.zip",
    ):
        (tmp_path / name).write_text("P3 photo of BM GIF8" if name == "ann/1.txt" else "")
    os.mkfifo(tmp_path / "ann/pipe")
    (tmp_path / "ann/gone.txt").symlink_to("nowhere")
    assert names(find_subjects(tmp_path)[0].images) == ["1.png"]
    said = passed_over([tmp_path, tmp_path / "ann"])
    assert said is not None and ", ".join(sorted(said.split(", "))) == (
        "1 .json (such as ann/1.json), 1 .mov (such as ann/clip.mov), 1 .pdf (such as ann/a.pdf), "
        f"1 .zip (such as {tmp_path.name}/x.zip), 3 .txt (such as ann/1.txt), 3 without a suffix (such as ann/empty)"
    )


def test_hidden_pictures_are_counted_and_other_hidden_files_are_not(tmp_path: Path):
    for name in ("1.png", ".2.png", ".trashed-3.jpg", ".thumbnails/4.png"):
        picture(tmp_path / name)
    for name in (".DS_Store", "._1.png", ".nomedia", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert names(list_images(tmp_path)) == ["1.png"]
    assert passed_over([tmp_path]) == f"1 .jpg (such as {tmp_path.name}/.trashed-3.jpg), 2 .png (such as " + (
        f"{tmp_path.name}/.2.png)"
    )
    (tmp_path / ".notes.txt.icloud").touch()
    (tmp_path / ".IMG_5.HEIC.icloud").touch()
    with pytest.raises(UserError, match="IMG_5.HEIC.icloud stands for a photo that iCloud has not downloaded"):
        list_images(tmp_path)


def test_a_huge_picture_is_a_photo_that_is_refused_for_its_size(tmp_path: Path):
    data = bytearray(picture(tmp_path / "s01/IMG_1").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "s01/IMG_1").write_bytes(data)
    with pytest.raises(UserError, match="s01/IMG_1 has more than 89 million pixels"):
        load_images(find_subjects(tmp_path)[0].images, 16)


def test_a_folder_whose_name_is_too_long_for_results_is_refused(tmp_path: Path):
    picture(tmp_path / ("x" * 240) / "1.png")
    with pytest.raises(UserError, match="the name of the folder x+ is too long"):
        find_subjects(tmp_path)


def test_only_the_first_frame_of_moving_pictures_is_read_and_they_are_named(tmp_path: Path):
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    for name in ("a.gif", "b.webp", "c.apng", "d.tiff", "e.mpo"):
        kind = {"c.apng": "PNG", "e.mpo": "MPO"}.get(name)
        red.save(tmp_path / name, format=kind, save_all=True, append_images=[blue])
    assert load_images(list_images(tmp_path), 16)[:, 0].gt(240).all()
    assert names(moving([tmp_path])) == ["a.gif", "b.webp", "c.apng", "d.tiff"]
    picture(tmp_path / "f.gif", "GIF")
    (tmp_path / "g.gif").touch()
    picture(tmp_path / "h.jpg", "JPEG")
    picture(tmp_path / "i.bmp", "BMP")
    assert len(moving([tmp_path])) == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("nowhere.jpg"), "s01/a.jpg is a link that leads nowhere"),
        (lambda path: path.symlink_to(path), "s01/a.jpg is a link that leads nowhere"),
    ],
)
def test_a_broken_link_named_like_a_photo_is_refused(tmp_path: Path, make: Callable[[Path], None], said: str):
    picture(tmp_path / "s01/1.png")
    make(tmp_path / "s01/a.jpg")
    with pytest.raises(UserError, match=said):
        find_subjects(tmp_path)


def test_a_broken_link_that_may_be_a_person_is_refused(tmp_path: Path):
    picture(tmp_path / "s01/1.png")
    (tmp_path / "s02").symlink_to("unmounted/s02")
    with pytest.raises(UserError, match="s02 is a link that leads nowhere"):
        find_subjects(tmp_path)


def test_links_are_followed_once_and_a_loop_ends(tmp_path: Path):
    photo = picture(tmp_path / "archive/1.png")
    (tmp_path / "people").mkdir()
    (tmp_path / "people/ann").symlink_to(tmp_path / "archive")
    (tmp_path / "people/bob").mkdir()
    (tmp_path / "people/bob/2.png").symlink_to(photo)
    assert [names(subject.images) for subject in find_subjects(tmp_path / "people")] == [["1.png"], ["2.png"]]
    (tmp_path / "people/bob/loop").symlink_to(tmp_path / "people/bob")
    picture(tmp_path / "people/bob/run/images/bob/2.png")
    (tmp_path / "people/bob/run/.apdm").touch()
    assert [place.name for place, _ in walk(tmp_path / "people")] == ["people", "ann", "bob"]


@pytest.mark.parametrize(
    ("locked", "said"),
    [
        ("people/s01/IMG_0001", "s01/IMG_0001 cannot be read: Permission denied"),
        ("people/s01", "folder people/s01 cannot be read: Permission denied"),
        ("people", "folder people cannot be read: Permission denied"),
    ],
)
def test_an_unreadable_file_or_folder_is_said(
    locked: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "people/s01/IMG_0001")
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    Path(locked).chmod(0)
    people = Path("people")
    ways: list[Callable[[], object]] = [
        lambda: find_subjects(people),
        lambda: list_all_images(people),
        lambda: PhotoFolders.below("people", AuditConfig()).load(16),
    ]
    try:
        for way in ways:
            with ordinary_user(), pytest.raises(UserError, match=said):
                way()
    finally:
        Path(locked).chmod(0o755)


def test_strangers_lie_loose_or_in_folders(tmp_path: Path):
    for name in ("a.png", "x/1.png", "y/deep/1.png"):
        picture(tmp_path / name)
    (tmp_path / "__MACOSX").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_all_images(tmp_path)] == [
        "a.png",
        "x/1.png",
        "y/deep/1.png",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no photos"):
        list_all_images(tmp_path / "empty")


def test_an_id_is_the_same_in_both_forms_of_unicode_and_prints_everywhere(tmp_path: Path):
    composed, apart = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    picture(tmp_path / "one" / apart / f"{apart}.png")
    picture(tmp_path / "one" / apart / f"safe/{composed}.png")
    (subject,) = find_subjects(tmp_path / "one")
    assert subject.id == composed and subject.safe is not None
    picture(tmp_path / "one" / composed / "2.png")
    with pytest.raises(UserError, match="two folders that read José"):
        find_subjects(tmp_path / "one")
    picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/two/Jos\xe9/caf\xe9.png")))
    (subject,) = find_subjects(tmp_path / "two")
    assert subject.id == "Jos\\xe9" and len(load_images(subject.images, 16)) == 1
    assert name_some(subject.images) == "Jos\\xe9/caf\\xe9.png" and printable("a\nb\x1b") == "a\\nb\\x1b"


def test_what_follows_a_dot_is_a_suffix_only_if_it_is_a_pictures():
    pairs = {"a.b.JPG": "a.b", "a.jpg ": "a", "a.mpo": "a", "2024.05 Rome": "2024.05 Rome", "a.dat": "a.dat", "a": "a"}
    assert {name: stem(Path(name)) for name in pairs} == pairs


def test_formats_that_start_another_program_or_hold_no_pixels_are_not_read(tmp_path: Path):
    assert not {"EPS", "WMF", "MPEG", "HDF5"} & set(formats())
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    listing = list_folder(tmp_path)
    assert not listing.photos and names(listing.others) == ["a.eps"]


def test_in_an_ascii_process_an_id_that_cannot_be_written_is_said_in_one_line(tmp_path: Path):
    picture(tmp_path / "José/1.png")
    script = (
        "from pathlib import Path\nfrom apdm.data.photo_files import UserError, subject_id\n"
        "try:\n    subject_id(next(Path().iterdir()))\nexcept UserError as error:\n    print(error)\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", script]
    result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("cannot be written to in this locale; set PYTHONUTF8=1\n"), result.stderr
