"""Sheets of pictures, and how many copies of many pictures are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from tiny_audit import ConvJudge
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from apdm.audit.results.store import CellStore, tensor_hash
from apdm.core.pictures import as_images, grid, read_grid, save_png, to_pil, to_signed, to_unit
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import load_images
from apdm.metrics.judges import Judges


def test_gaps_of_a_sheet_are_white_and_values_are_rounded_and_clipped():
    sheet = grid(torch.tensor([-0.5, 100.4 / 255, 1.5]).view(3, 1, 1, 1).expand(3, 3, 2, 4), 2)
    assert sheet.size == (8, 4)
    corners = [sheet.getpixel(place) for place in ((0, 0), (4, 0), (0, 2), (4, 2))]
    assert corners == [(value,) * 3 for value in (0, 100, 255, 255)]


def test_a_sheet_of_more_pixels_than_pillow_opens_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As the class pictures of an audit are: 200 of 1024 x 1024 pixels.
    pictures = torch.arange(5 * 3 * 4 * 6).view(5, 3, 4, 6) % 256 / 255
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    store = CellStore(tmp_path)
    store.save("key", {}, {"class": pictures})
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "key/class.png")
    assert torch.equal(store.load("key")[1]["class"], pictures)
    assert read_grid(tmp_path / "key/class.png").size == (30, 4)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_photos_in_8_bits_give_the_same_numbers_as_photos_that_were_kept_as_floats():
    photos = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    kept = torch.empty(3, 3, 16, 16).copy_(photos).div_(127.5).sub_(1.0)
    assert torch.equal(to_signed(photos), kept) and to_signed(kept) is kept
    assert torch.equal(to_unit(photos), to_unit(kept)) and torch.equal(to_unit(photos), kept / 2 + 0.5)
    assert tensor_hash(photos) == tensor_hash(kept)  # finished attacks of earlier versions are found
    seen, expected = (JUDGES.features(images) for images in (photos, to_unit(kept)))
    assert torch.equal(seen.embeddings["one"], expected.embeddings["one"])
    assert torch.equal(cast(Tensor, seen.face_scores), cast(Tensor, expected.face_scores))


class Copies(TorchDispatchMode):
    """Keeps all float tensors of at least `numbers` numbers that are made."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.made = numbers, dict[int, torch.Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point() and made.numel() >= self.numbers:
            self.made[made.data_ptr()] = made
        return made


IMAGES = torch.rand(5, 3, 40, 40)
PHOTOS = (IMAGES * 255).byte()
JUDGES = Judges([ConvJudge("one", 0.0, 1)], ConvJudge("face", -2.0, 2), None, batch_size=1)


@pytest.mark.parametrize(
    ("copies", "use"),
    [
        (0, lambda files: load_images(files, 40)),
        (1, lambda files: to_unit(PHOTOS)),
        (1, lambda files: to_unit(IMAGES)),
        (1, lambda files: as_images(torch.zeros(5, 40, 40, 3, dtype=torch.uint8))),
        (0, lambda files: PhotoSet.of(Role.CLASS, "class", files, PHOTOS)),
        (0, lambda files: JUDGES.embed_seen(PHOTOS)),
    ],
)
def test_many_pictures_are_in_memory_once(copies: int, use: Callable[[list[Path]], object], tmp_path: Path):
    """200 of 1024 x 1024 pixels are 2.5 GB in float32."""
    files = [tmp_path / f"{place}.png" for place in range(len(IMAGES))]
    for file, image in zip(files, IMAGES, strict=True):
        save_png(to_pil(image), file)
    with Copies(IMAGES.numel() // 3) as seen:  # also as grey pictures
        use(files)
    assert len(seen.made) == copies
