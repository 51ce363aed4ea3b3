"""Sheets of pictures, and how many copies of many pictures are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from apdm.audit.results.store import CellStore
from apdm.core.pictures import as_images, grid, read_grid, save_png, to_pil, to_unit
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import load_images


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


@pytest.mark.parametrize(
    ("copies", "use"),
    [
        (1, lambda files: load_images(files, 40)),
        (1, lambda files: to_unit(IMAGES)),
        (1, lambda files: as_images(torch.zeros(5, 40, 40, 3, dtype=torch.uint8))),
        (0, lambda files: PhotoSet.of(Role.CLASS, "class", files, IMAGES)),
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
