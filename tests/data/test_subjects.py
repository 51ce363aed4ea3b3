"""Subject folders, and photos of every kind that people have."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from apdm.core.errors import UserError
from apdm.data.subjects import Subject, find_subjects, list_all_images, list_images, load_images


def photo(path: Path, size: tuple[int, int] = (32, 32), color: str = "red", mode: str = "RGB", **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **save)
    return path


def corner(path: Path, resolution: int = 16) -> list[int]:
    """The top left pixel in 0..255, and a check that the tensor is what it says."""
    images = load_images([path], resolution)
    assert images.shape == (1, 3, resolution, resolution)
    assert images.dtype == torch.uint8 and images.is_contiguous()
    return images[0, :, 0, 0].tolist()


# ---- folders


def test_every_folder_is_a_subject_sorted_by_id_with_photos_sorted_by_name(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x.webp"):
        photo(tmp_path / name)
    assert find_subjects(tmp_path) == [
        Subject("a", [tmp_path / "a/x.webp"]),
        Subject("b", [tmp_path / "b/1.JPG", tmp_path / "b/2.png"]),
    ]


def test_photos_directly_in_the_folder_are_one_subject_s01(tmp_path):
    photo(tmp_path / "1.jpeg")
    photo(tmp_path / "safe" / "1.png")
    assert find_subjects(str(tmp_path)) == [
        Subject("s01", [tmp_path / "1.jpeg"], [tmp_path / "safe" / "1.png"]),
    ]


def test_a_folder_without_pictures_beside_photos_is_passed_over(tmp_path):
    kept = photo(tmp_path / "1.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "camera.txt").write_text("x")
    assert find_subjects(tmp_path) == [Subject("s01", [kept])]


def test_safe_partners_follow_the_order_of_their_photos_by_stem(tmp_path):
    for name in ("s/10.png", "s/9.jpg", "s/safe/9.png", "s/safe/10.webp"):
        photo(tmp_path / name)
    (subject,) = find_subjects(tmp_path)
    assert [path.name for path in subject.images] == ["10.png", "9.jpg"]
    assert [path.name for path in subject.safe] == ["10.webp", "9.png"]


def test_hidden_files_and_files_that_are_no_pictures_are_passed_over(tmp_path):
    kept = photo(tmp_path / "s" / "1.png")
    litter = ("__MACOSX/s/._1.png", "s/Thumbs.db", "s/desktop.ini", "s/@eaDir/1.png", "lost+found/x", "s/Icon\r")
    for name in ("s/.DS_Store", "s/._1.png", "s/notes.txt", ".cache/1.png", "README.md", *litter):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert find_subjects(tmp_path) == [Subject("s", [kept])]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no photos; put"),
        (["s/notes.txt"], 'subject "s" has no photos'),
        (["a/1.png", "b/.1.png"], 'subject "b" has no photos'),
        (["1.png", "s/1.png"], r"holds loose photos \(.*/1.png\) beside folders with photos \(.*/s\)"),
        (["1.png", "t/2.png", "s/a/b/1.png"], r"beside folders with photos \(.*/s and 1 more\)"),
        (["people/a/1.png", "people/b/2.png"], 'subject "people" has photos in the inner folder "a"'),
        (["s/1.png", "s/2019/may/2.png"], 'photos in the inner folder "2019/may"'),
        (["s/1.png", "s/safe/1.png", "s/safe/more/1.png"], 'photos in the inner folder "safe/more"'),
        (["s/1.png", "s/raw/2.CR2"], 'photos in the inner folder "raw"'),
        (["1.png", "2.png", "safe/1.png"], "^(?!.*s01).* lacks safe/2:"),
        (["s/1.png", "run/.apdm", "run/images/s/1.png"], "run is an output folder of apdm among the subjects"),
        (["s/1.png", "a.jpg/notes.txt"], 'subject "a.jpg" has no photos, only a.jpg/notes.txt'),
        (["notes.txt", "a.pdf"], "holds no photos, only .*/a.pdf, .*/notes.txt; put them in"),
        (["s/1.png", "s/more/2.png"], 'photos in the inner folder "more"'),
        (["s/1.png", "safe/1.png"], "safe belongs to no subject"),
        (["s/1.png", "s/2.heic"], "s/2.heic is of a kind that is not read"),
        (["s/1.png", "2.heic"], "2.heic is of a kind that is not read"),
        (["s/1.png", "s/2.png", "s/safe/1.png"], 'subject "s" lacks safe/2:'),
        (["s/1.png", "s/safe/1.png", "s/safe/3.png"], 'subject "s" lacks 3:'),
        (["s/1.png", "s/2.png", "s/safe/x.txt"], 'subject "s" lacks safe/1, safe/2:'),
        (["s/1.png", "s/1.jpg", "s/safe/1.png"], "has both 1.jpg and 1.png"),
    ],
)
def test_a_folder_that_is_unclear_is_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        find_subjects(tmp_path)


def test_all_bad_photos_are_told_at_once_also_if_one_is_of_a_kind_that_is_not_read(tmp_path):
    """Of the person with that photo, of the partners, and of another person; a sound one is not named."""
    names = ("a/1.png", "a/2.heic", "a/3.png", "a/safe/1.png", "a/safe/2.png", "a/safe/3.png", "b/1.png", "b/2.png")
    for name in names:
        photo(tmp_path / name.replace("heic", "png")).rename(tmp_path / name)
    spoiled = ("a/2.heic", "a/3.png", "a/safe/2.png", "b/2.png")
    for name in spoiled:
        (tmp_path / name).write_bytes(b"")
    for find in (find_subjects, list_all_images):
        with pytest.raises(UserError) as told:
            find(tmp_path)
        assert sorted(line.split()[0] for line in str(told.value).splitlines()) == sorted(spoiled)
    with pytest.raises(UserError) as told:
        list_images(tmp_path / "a")
    assert sorted(line.split()[0] for line in str(told.value).splitlines()) == ["a/2.heic", "a/3.png"]


def test_a_missing_folder_is_refused_by_name(tmp_path):
    photo(tmp_path / "file.png")
    for name, what in (("nowhere", "does not exist"), ("file.png", "is no folder")):
        with pytest.raises(UserError, match=f"{name} {what}"):
            find_subjects(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} {what}"):
            list_images(tmp_path / name)


# ---- photos


def test_a_pixel_comes_back_in_rgb_order(tmp_path):
    assert load_images([photo(tmp_path / "p.png", color="#ff8000")], 16)[0, :, 3, 5].tolist() == [255, 128, 0]


def test_a_photo_of_the_smallest_size_is_read(tmp_path):
    assert corner(photo(tmp_path / "p.png", (16, 16), color="white")) == [255, 255, 255]


def test_photos_keep_their_order(tmp_path):
    paths = [photo(tmp_path / f"{color}.png", color=color) for color in ("white", "black", "red")]
    assert load_images(paths, 16)[:, :, 0, 0].tolist() == [[255, 255, 255], [0, 0, 0], [255, 0, 0]]


@pytest.mark.parametrize("landscape", [True, False])
def test_the_centred_square_is_taken_and_the_aspect_kept(tmp_path, landscape):
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, 32:64] = 255
    Image.fromarray(pixels if landscape else pixels.swapaxes(0, 1)).save(tmp_path / "p.png")
    assert load_images([tmp_path / "p.png"], 32).eq(255).all()
    half = load_images([tmp_path / "p.png"], 16)
    assert half[..., 4:12, 4:12].eq(255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_every_colour_mode_gives_the_same_white(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    path = photo(tmp_path / f"p.{suffix}", color="white", mode=mode)
    assert Image.open(path).mode == mode
    assert corner(path) == [255, 255, 255]


def test_cmyk_keeps_its_colour(tmp_path):
    red, green, blue = corner(photo(tmp_path / "p.jpg", color="red", mode="CMYK", quality=95))
    assert red > 245 and green < 10 and blue < 10


def swapped_profile() -> bytes:
    """sRGB's profile with red and blue exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"tmp_"), (b"bXYZ", b"rXYZ"), (b"tmp_", b"bXYZ")):
        profile = profile.replace(old, new)
    return profile.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied_and_not_only_dropped(tmp_path, mode):
    image = Image.new("RGB", (32, 32), "red").convert(mode)
    image.save(tmp_path / "p.png", icc_profile=swapped_profile())
    red, green, blue = corner(tmp_path / "p.png")
    assert blue > 250 and red < 5 and green < 5


@pytest.mark.parametrize(
    "profile", [b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_a_profile_that_is_srgbs_or_none_leaves_every_pixel(tmp_path, profile):
    Image.new("RGB", (32, 32), (200, 60, 50)).save(tmp_path / "p.png", icc_profile=profile)
    assert corner(tmp_path / "p.png") == [200, 60, 50]


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, grey):
    Image.fromarray(np.full((32, 32), grey * 257, dtype=np.uint16)).save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode.startswith("I")
    assert corner(tmp_path / "p.png") == [grey] * 3


def test_16_bit_colour_is_scaled_and_not_clipped(tmp_path):
    raw = b"".join(b"\0" + struct.pack(">HHH", 65535, 128 * 257, 0) * 32 for _ in range(32))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert corner(tmp_path / "p.png") == [255, 128, 0]


@pytest.mark.parametrize(
    ("mode", "name", "save"),
    [
        ("RGBA", "p.png", {}),
        ("RGBA", "p.png", {"icc_profile": swapped_profile()}),
        ("RGBA", "p.webp", {"lossless": True, "exact": True}),
        ("LA", "p.png", {}),
        ("P", "p.png", {"transparency": 0}),
        ("L", "p.png", {"transparency": 0}),
    ],
)
def test_what_is_transparent_becomes_white(tmp_path, mode, name, save):
    Image.new(mode, (32, 32)).save(tmp_path / name, **save)
    assert corner(tmp_path / name) == [255, 255, 255]


def test_half_transparent_is_half_way_to_white(tmp_path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 128)).save(tmp_path / "p.png")
    assert corner(tmp_path / "p.png") == [127, 127, 127]


def test_a_photo_is_turned_upright_as_exif_says(tmp_path):
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 16, 32))  # white on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view: left becomes top
    image.save(tmp_path / "p.png", exif=exif)
    upright = load_images([tmp_path / "p.png"], 32)[0, 0]
    assert upright[:8].eq(255).all() and upright[-8:].eq(0).all()


def test_a_phones_multi_picture_jpeg_is_read(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "p.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert corner(tmp_path / "p.jpg") == [255, 255, 255]


def enormous_png(path: Path, side: int) -> None:
    photo(path, (16, 16))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def raw_preview(path: Path, tag: int, value: int | bytes) -> None:
    """A TIFF picture with a tag that cameras and Adobe's converter write into raw files."""
    Image.new("RGB", (32, 32)).save(path, format="TIFF", tiffinfo={tag: value})


def truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("p.png", lambda path: path.touch(), "empty"),
        ("p.jpg", lambda path: path.write_text("no picture"), "not a picture that can be read; replace"),
        ("p.jpg", lambda path: Image.new("RGB", (32, 32)).save(path, format="PDF"), "not a picture that can be read"),
        ("p.jpg", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), "Pillow's plugins for HEIC"),
        ("p.jpg", lambda path: path.write_bytes(b"FUJIFILMCCD-RAW 0201" + bytes(99)), "export raw files as JPEG"),
        ("p.tif", lambda path: raw_preview(path, 0xFE, 1), "is a raw file of a camera"),
        ("p.tif", lambda path: raw_preview(path, 0xC612, b"\1\4\0\0"), "is a raw file of a camera"),
        ("p.tif", lambda path: Image.new("F", (32, 32)).save(path), "colours of the kind F"),
        ("p.jpg", os.mkfifo, "is no file"),
        ("p.png", truncate, "damaged"),
        ("p.jpg", truncate, "damaged"),
        ("p.webp", truncate, "damaged|not a picture"),
        ("p.png", lambda path: photo(path, (1, 1)), "is 1x1; a photo needs 16 pixels"),
        ("p.png", lambda path: photo(path, (400, 15)), "is 400x15; a photo needs 16 pixels"),
        ("p.png", lambda path: enormous_png(path, 9_500), "more than 89 million pixels"),
        ("p.png", lambda path: enormous_png(path, 60_000), "more than 89 million pixels"),
        ("p.png", lambda path: None, "does not exist"),
        ("p.png", lambda path: path.mkdir(), "is no file"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_photo_that_cannot_be_used_is_refused_by_name(tmp_path, name, spoil, message):
    path = tmp_path / "s01" / name
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        load_images([path], 16)
    assert f"s01/{name}" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_a_bad_safe_partner_is_named_with_its_subject(tmp_path):
    (tmp_path / "s01" / "safe").mkdir(parents=True)
    (tmp_path / "s01" / "safe" / "1.png").touch()
    with pytest.raises(UserError, match="^s01/safe/1.png is empty"):
        load_images([tmp_path / "s01" / "safe" / "1.png"], 16)


def test_no_photos_at_all_is_an_error():
    with pytest.raises(UserError, match="no photos"):
        load_images([], 16)
