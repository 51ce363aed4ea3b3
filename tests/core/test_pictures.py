"""Sheets of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from apdm.audit.results.store import CellStore
from apdm.core.pictures import grid, read_grid


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
