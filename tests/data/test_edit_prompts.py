"""A prompt for each photo: Defense-Edit's layout, tables as in imagefolder, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from apdm.core.errors import UserError
from apdm.data.edit_prompts import Edit, read_edits

PHOTOS = {"104": [Path("elsewhere/104/a.png")], "dog": [Path("dog/1.jpg"), Path("dog/2.jpg")]}


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_one_prompt_in_each_folder_is_that_of_all_its_photos(tmp_path: Path):
    root = written(tmp_path, {"104/prompt.txt": "a photo of a sad person\n", "dog/prompt.txt": "a jumping dog"})
    assert read_edits(root, PHOTOS) == {"104": [Edit("a photo of a sad person")], "dog": [Edit("a jumping dog")] * 2}


TABLES = {
    "jsonl": '{"file_name": "104/a.jpg", "prompt": "sad", "source_prompt": "a face"}\n'
    '{"file_name": "dog/1.jpg", "prompt": "up"}\n',
    "csv": "file_name,prompt,source_prompt\n104/a.jpg,sad,a face\ndog/1.jpg,up,\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_names_photos_whatever_their_suffix(tmp_path: Path, kind: str):
    own = {"dog/metadata.jsonl": '{"file_name": "2.jpg", "prompt": "down"}'}
    root = written(tmp_path, {f"metadata.{kind}": TABLES[kind], **own})
    assert read_edits(root, PHOTOS) == {"104": [Edit("sad", "a face")], "dog": [Edit("up"), Edit("down")]}


def test_files_of_excel_and_prompts_of_several_lines_are_read(tmp_path: Path):
    text = '\ufefffile_name,prompt\nonly/a.png,"a red hat,\non a dog"\n'
    root = written(tmp_path, {"metadata.csv": text})
    assert read_edits(root, {"only": [Path("x/a.png")]}) == {"only": [Edit("a red hat,\non a dog")]}
    line = '\ufeff{"file_name": "a.png", "prompt": "one\u2028two"}\n'
    root = written(tmp_path / "other", {"only/metadata.jsonl": line})
    assert read_edits(root, {"only": [Path("x/a.png")]}) == {"only": [Edit("one\u2028two")]}


def test_rows_may_name_photos_that_lie_there_and_are_not_used(tmp_path: Path):
    """A table of a whole dataset serves a part of its people and photos, whose files may lie elsewhere."""
    names = ["104/set_A/a.png", "104/set_B/b.png", "105/set_A/c.jpg", "104/loose.png"]
    people = written(tmp_path / "people", dict.fromkeys(names, ""))
    rows = [f'{{"file_name": "{name}", "prompt": "sad"}}' for name in ("104/a.png", "104/b", "105/c", "104/loose")]
    photos = {"104": [people / "104/set_A/a.png"]}
    for root in (people, tmp_path / "prompts"):
        written(root, {"metadata.jsonl": "\n".join(rows), "prompt.txt": "glad"})
        assert read_edits(root, photos) == {"104": [Edit("sad")]}
        also = {"104": [*photos["104"], people / "104/set_A/new.png"]}
        assert read_edits(root, also) == {"104": [Edit("sad"), Edit("glad")]}
    elsewhere = {"104": [tmp_path / "x/104/a.png"]}  # a row that nothing stands in for may be of another dataset
    assert read_edits(tmp_path / "prompts", elsewhere) == {"104": [Edit("sad")]}


def test_folders_of_prompts_may_be_for_people_who_are_not_asked_for(tmp_path: Path):
    """Their photos lie there, or no prompt stands in for theirs."""
    root = written(tmp_path / "prompts", {"prompt.txt": "sad", "105/prompt.txt": "up", "106/prompt.txt": "down"})
    written(root, {"106/set_A/a.png": ""})
    photos = {"104": [tmp_path / "people/104/set_A/a.png"]}
    written(tmp_path / "people", {"105/set_A/a.jpg": ""})
    assert read_edits(root, photos) == {"104": [Edit("sad")]}
    written(root, {"104/prompt.txt": "glad", "107/prompt.txt": "up"})
    assert read_edits(root, photos) == {"104": [Edit("glad")]}


def test_loose_photos_have_their_prompt_beside_them(tmp_path: Path):
    root = written(tmp_path, {"prompt.txt": "sad"})
    assert read_edits(root, {"only": [Path("x/a.png")]}) == {"only": [Edit("sad")]}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"104/prompt.txt": "sad"}, "has no prompt for dog/1.jpg; add dog/prompt.txt"),
        ({"104/prompt.txt": " \n"}, "prompt.txt is empty"),
        ({"metadata.jsonl": "104/a.png sad"}, "metadata.jsonl, line 1: it is no JSON object"),
        ({"metadata.jsonl": '{"file_name": "104/a.png"}'}, "metadata.jsonl, row 1: it needs file_name and prompt"),
        ({"metadata.csv": "name,text\na,b\n"}, "metadata.csv, row 1: it needs file_name and prompt"),
        ({"metadata.csv": "file_name,prompt\n104/a.jpg,red, hat\n"}, "row 1: it has more cells than columns"),
        ({"metadata.csv": 'file_name,prompt\na,"' + "a" * 140_000}, "metadata.csv is no CSV that can be read"),
        ({"metadata.jsonl": '{"file_name": ".", "prompt": "a"}'}, "row 1: file_name is '.'; name the file of a photo"),
        ({"metadata.jsonl": "[" * 100_000}, "metadata.jsonl, line 1: it is no JSON object"),
        ({"metadata.jsonl": '{"file_name": "a", "prompt": "b", "source_prompt": ["c"]}'}, "row 1: it needs file_name"),
        (
            {"metadata.csv": "file_name,prompt\n104/a.jpg,b\n104/b.jpg,c\n", "prompt.txt": "sad"},
            "metadata.csv, row 2: there is no photo 104/b.jpg; mend its name, or leave the row out",
        ),
        (
            {"dog/metadata.jsonl": '{"file_name": "3.jpg", "prompt": "up"}', "prompt.txt": "sad"},
            "metadata.jsonl, row 1: there is no photo 3.jpg",
        ),
        (
            {"prompt.txt": "sad", "105/prompt.txt": "up"},
            "105/prompt.txt: there are no photos of 105; mend the folder's",
        ),
        (
            {"prompt.txt": "sad", "105/metadata.csv": "file_name,prompt\na.jpg,up\n", "105/.hidden": ""},
            "105/metadata.csv: there are no photos of 105; mend the folder's name, or leave it out",
        ),
        ({"metadata.csv": "file_name,prompt\na.jpg,b\na.jpg,c\n"}, "row 2: a.jpg has another prompt already"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, files: dict[str, str], said: str):
    with pytest.raises(UserError) as error:
        read_edits(written(tmp_path, files), PHOTOS)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="edit_prompts: .*nowhere is no folder"):
        read_edits(tmp_path / "nowhere", PHOTOS)
