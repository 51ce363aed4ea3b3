"""Captions from COCO's file and from text files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apdm.core.errors import UserError
from apdm.data.captions import Caption, read_captions


def test_one_caption_of_each_photo_is_taken_from_coco_s_file(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 9, "file_name": "nine.jpg"}, {"id": 2, "file_name": "two.jpg"}],
        "annotations": [
            {"id": 7, "image_id": 9, "caption": "A dog\n runs."},
            {"id": 5, "image_id": 9, "caption": "A cat sits."},
            {"id": 6, "image_id": 2, "caption": "A boat."},
        ],
    }
    file = tmp_path / "captions_val2014.json"
    file.write_text(json.dumps(content))
    assert read_captions(file, 2) == [Caption("A boat.", "two.jpg"), Caption("A cat sits.", "nine.jpg")]
    with pytest.raises(UserError, match="has 2 captions, and 3 are needed"):
        read_captions(file, 3)


def test_a_text_file_has_a_caption_a_line(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_bytes("\ufeffa house\r\n\n  a tree \r\none\u2028café\n".encode())  # as editors on Windows write it
    assert read_captions(file, 3) == [Caption("a house"), Caption("a tree"), Caption("one\u2028café")]
    with pytest.raises(UserError, match="has 3 captions, and 4 are needed"):
        read_captions(file, 4)


@pytest.mark.parametrize("text", ["[]", "{}", "nothing"])
def test_another_json_file_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text(text)
    with pytest.raises(UserError, match="is not a file of captions in COCO's form"):
        read_captions(file, 1)
