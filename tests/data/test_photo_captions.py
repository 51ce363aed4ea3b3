"""A caption for each photo: tables as in imagefolder, files as in kohya's layout, and what is wrong with them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from apdm.core.errors import UserError
from apdm.data.photo_captions import all_captions, caption_files, has_captions, read_captions

RED, GREEN = "a photo of sks person with red hair", "sks person, smiling"
ROWS = f'{{"file_name": "1.jpg", "text": "{RED}", "tags": "red"}}\n{{"file_name": "2.png", "text": "{GREEN}"}}\n'


def person(folder: Path, **files: str) -> list[Path]:
    """The photos of a person, with files beside them."""
    root = folder / "s01"
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return [root / "1.jpg", root / "2.png"]


@pytest.mark.parametrize(
    "files",
    [
        {"metadata.jsonl": ROWS},
        {"metadata.jsonl": ROWS + '{"file_name": "of nobody.jpg", "text": "x"}\n\n'},
        {"metadata.jsonl": ROWS.replace('"1.jpg"', '"./1.jpg"').replace("red hair", "red \\n hair ")},
        {"metadata.jsonl": ROWS, "metadata.csv": "file_name,text\n1.jpg,another\n2.png,another\n"},
        {"metadata.csv": f'\ufefffile_name,text\n2.png,"{GREEN}"\n1.jpg,{RED}\n'},
    ],
)
def test_a_table_gives_the_caption_of_each_photo(tmp_path: Path, files: dict[str, str]):
    assert read_captions(person(tmp_path, **files), "text") == [RED, GREEN]


def test_files_of_a_suffix_give_the_caption_of_the_photo_of_their_name_even_beside_a_table(tmp_path: Path):
    texts = {"metadata.jsonl": ROWS, "1.txt": "one,\n two\n", "2.txt": "\ufefftwo", "1.caption": "a", "2.caption": "b"}
    photos = person(tmp_path, **texts)
    assert read_captions(photos, ".txt") == ["one, two", "two"]
    assert read_captions(photos, ".caption") == ["a", "b"]
    assert read_captions(photos, "text") == [RED, GREEN]


def test_all_texts_beside_photos_are_found_but_not_their_names_nor_numbers(tmp_path: Path):
    rows = '{"file_name": "1.jpg", "text": "red  hair", "age": 7}\n{"file_name": "2.png", "tags": "smiling"}\n'
    table = "file_name,prompt\n1.jpg,at home\n"
    texts = {"metadata.jsonl": rows, "metadata.csv": table, "1.txt": "a scar\n", "2.caption": "smiling", "3.txt": "x"}
    assert all_captions(person(tmp_path, **texts)) == ["a scar", "at home", "red hair", "smiling"]
    columns = ["text", ".txt", "tags", ".caption"]
    assert caption_files(columns) == [".caption", ".txt", "metadata.csv", "metadata.jsonl"]


def test_a_name_may_be_written_with_composed_or_decomposed_accents(tmp_path: Path):
    photo = tmp_path / unicodedata.normalize("NFD", "é.jpg")
    row = f'{{"file_name": "{unicodedata.normalize("NFC", "é.jpg")}", "text": "a"}}'
    (tmp_path / "metadata.jsonl").write_text(row)
    assert read_captions([photo], "text") == ["a"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        ({"metadata.jsonl": ROWS}, ["text", "tags"]),
        ({"metadata.csv": "file_name,text\n"}, []),  # no row says anything
        ({"1.txt": RED}, [".txt"]),  # that of the second photo is missing, which `read_captions` tells
        ({"metadata.csv": f"file_name,text\n1.jpg,{RED}\n", "3.txt": RED}, ["text"]),
    ],
)
def test_captions_are_there_where_somebody_began_to_write_them(tmp_path: Path, files: dict[str, str], found: list[str]):
    photos = person(tmp_path, **files)
    assert [column for column in ("text", "tags", ".txt") if has_captions(photos, column)] == found


@pytest.mark.parametrize(
    ("files", "column", "said"),
    [
        ({}, "text", 'there is no s01/metadata.jsonl; write a line for each photo, {"file_name": "1.jpg", "text"'),
        ({"metadata.jsonl": ROWS}, "texts", "s01/metadata.jsonl has no column texts; it has tags, text"),
        ({"metadata.jsonl": ROWS}, "tags", "s01/metadata.jsonl has no caption for s01/2.png; add a row"),
        ({"metadata.csv": f"file_name,text\n1.jpg,{RED}\n2.png\n"}, "text", "has no caption for s01/2.png"),
        ({"metadata.jsonl": ROWS.replace(GREEN, " ")}, "text", "the caption of s01/2.png is empty"),
        ({"metadata.jsonl": ROWS.replace("2.png", "2.jpg")}, "text", "has no caption for s01/2.png"),
        ({"metadata.jsonl": ROWS + '{"text": "x"}'}, "text", "metadata.jsonl, row 3: it needs a file_name"),
        ({"metadata.jsonl": ROWS + '{"file_name": "1.jpg", "text": 3}'}, "text", "row 3: text is no text"),
        ({"metadata.jsonl": ROWS + '{"file_name": "1.jpg", "text": "x"}'}, "text", "row 3: this photo has another"),
        ({"metadata.jsonl": RED}, "text", "line 1: it is no JSON object"),
        ({"1.txt": RED}, ".txt", "there is no s01/2.txt; write the caption of each photo"),
        ({"1.txt": RED, "2.txt": "\n"}, ".txt", "the caption of s01/2.png is empty"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_that_shows_no_caption(
    tmp_path: Path, files: dict[str, str], column: str, said: str
):
    with pytest.raises(UserError) as error:
        read_captions(person(tmp_path, **files), column)
    message = str(error.value)
    assert said in message and f"caption_column={column}" in message or "no JSON object" in message
    assert "\n" not in message and RED not in message and GREEN not in message
