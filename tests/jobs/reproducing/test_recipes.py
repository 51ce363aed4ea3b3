"""What is wrong with a recipe, its models or the words of the command is told in one line, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_stable_diffusion import write_sets

from apdm.cli import main
from apdm.config import ReproduceConfig
from apdm.core.errors import UserError
from apdm.jobs.reproduce import load_job, reproduce
from apdm.jobs.reproducing.checks import check_options
from apdm.jobs.reproducing.models import read_models
from apdm.jobs.reproducing.recipes import load_recipe
from apdm.jobs.reproducing.subjects import read_subjects
from apdm.portraits import PIPELINE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolutoin": 64}, "resolutoin is not a known field"),
        ({"model": "sd16"}, "model is sd16; it needs one of sd15"),
        (
            {"rows": {"x": {"title": "X", "protect": "nobody"}}},
            "rows.x.protect is nobody, which is none of protections",
        ),
        ({"rows": {"x": {"title": "X", "clean": 2}}}, "rows.x.clean is 2, not one of 0, 1, 'N-1'"),
        (
            {"rows": {"x": {"title": "X", "published": {"fid": 1.0}}}},
            "rows.x.published has fid, which is none of columns",
        ),
        ({"protections": {"pap": {"needs": "PAP"}}}, "protections.pap needs harden or perturb or both, or else needs"),
        ({"keep_columns": ["dinosaur"]}, "keep_columns has dinosaur; the columns are dino, "),
        (
            {"kinds": {"cat": {"subject": "sks cat", "class_prompt": "a photo of cat", "prompt_list": "live"}}},
            "kinds.cat.prompt_list is live; prompt_lists has none",
        ),
        ({"protects": "dog"}, "protects is dog; it needs one of kinds, and others that are attacked"),
        (
            {"columns": {"x": {"title": "X", "figure": "brisque", "better": "lower", "kind": "cat"}}},
            "columns.x.kind is cat, which is none of kinds",
        ),
        (
            {"columns": {"x": {"title": "X", "figure": "caption_frechet", "better": "lower"}}},
            "columns.x is about pictures for captions; it needs captions in the recipe",
        ),
    ],
)
def test_a_mistake_in_a_recipe_names_file_and_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"twin_of": "apdm/table1-person", **change}))
    with pytest.raises(UserError) as error:
        load_recipe(str(file))
    assert str(error.value).startswith(f"{file}: ") and said in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_option_of_a_command_names_recipe_and_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"twin_of": "apdm/table1-person", "attack": {"learning_rat": 1.0}}))
    with pytest.raises(UserError, match=r"mine.yaml, row dreambooth: unknown option .learning_rat"):
        check_options(load_recipe(str(file)), str(file))


COLUMN = {"title": "c", "better": "lower"}
CAPTIONED = {"columns": {"c": {**COLUMN, "figure": "caption_frechet"}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attack": {"attack": ["nosuch"]}}, "row dreambooth: there is no attack"),
        ({"attack": {"attack": ["faceid:scale=1"], "faceid_adapter": "x"}}, "faceid takes no options"),
        ({"attack": {"attack": ["lora", "dreambooth"]}}, "row dreambooth: attack names 2 attacks; a row has one"),
        ({"attack": {"output_dir": "x"}}, "row dreambooth: output_dir is set by the table"),
        ({"likeness_to": "originals"}, "likeness_to originals goes with attacks that train nothing"),
        ({"edits": True}, "edits is true, and drawn people have no prompts"),
        ({"rows": {"dreambooth": {"unseen": -1}}}, "rows.dreambooth.unseen is -1"),
        ({"rows": {"dreambooth": {"clean": 1}}}, "rows.dreambooth.clean is 1, and the row changes no photos"),
        ({"rows": {"dreambooth": {"line": "a"}}}, "rows.dreambooth has a line and no place"),
        ({"people": 0}, "people is 0"),
        ({"kinds": {"a": {"subject": " ", "class_prompt": "x"}}}, "kinds.a has an empty subject"),
        ({"columns": {"c": {**COLUMN, "figure": "clip", "prompt": 9}}}, "columns.c.prompt is 9, counted from 0"),
        ({"columns": {"c": {**COLUMN, "figure": "match_rate", "prompt": 0}}}, "not with match_rate; leave it out"),
        ({"columns": {"c": {**COLUMN, "figure": "brisque", "prompt": 1}}}, "not with brisque; leave it out"),
        ({"columns": {"c": {**COLUMN, "figure": "clip", "encoder": -1}}}, "columns.c.encoder is -1"),
        ({"columns": {"c": {**COLUMN, "figure": "clip", "pooled": True}}}, "columns.c.pooled goes with frechet"),
        ({**CAPTIONED, "captions": {"photos": "x", "number": 2}}, "captions needs either file or prompts"),
        ({**CAPTIONED, "captions": {"photos": "x", "number": 0, "prompts": ["a"]}}, "captions.number is 0"),
        ({**CAPTIONED, "captions": {"photos": "/no", "number": 2, "prompts": ["a"]}}, "captions.photos is /no, which"),
        ({**CAPTIONED, "captions": {"photos": "/", "number": 2, "file": "/no"}}, "/no cannot be read"),
    ],
)
def test_a_mistake_that_would_show_after_hours_is_told_first(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"twin_of": "miniature/apdm-table1-person", **change}))
    with pytest.raises(UserError) as error:
        load_job(ReproduceConfig(recipe=str(file), plan=True))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("twin_of: 3", "twin_of is 3; it needs a list of names"),
        ("twin_of: [[a]]", "twin_of is [['a']]; it needs a list"),
        ("{twin_of: apdm/table1-person, keep_columns: dino}", "keep_columns is dino; it needs a list"),
        ("{twin_of: apdm/table1-person, keep_rows: [[a]]}", "keep_rows is [['a']]; it needs a list"),
        ("twin_of: FILE", "twin_of leads back to this file"),
    ],
)
def test_wrong_names_of_other_recipes_are_told(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("FILE", str(file)))
    with pytest.raises(UserError) as error:
        load_recipe(str(file))
    assert str(error.value).startswith(f"{file}: ") and said in str(error.value)


def test_a_network_of_the_table_that_cannot_be_read_is_told_before_any_work(tmp_path: Path) -> None:
    columns = {"columns": {"c": {**COLUMN, "figure": "frechet"}}, "keep_columns": []}
    rows = {"keep_rows": [], "rows": {"none": {"title": "none"}}}
    file, models, output = tmp_path / "mine.yaml", tmp_path / "models.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"twin_of": "apdm/table1-person", **columns, **rows}))
    network = tmp_path / "inception.pth"
    torch.save({"a": torch.zeros(1)}, network)
    models.write_text(f"sd15: {PIPELINE}\ndino: {tmp_path}\ninception: {network}\n")
    data = write_sets(tmp_path / "data", people=1)
    given = {"recipe": str(file), "models": str(models), "data": str(data), "output_dir": str(output)}
    with pytest.raises(UserError, match="pickle") as error:
        reproduce(ReproduceConfig(**given))
    assert "\n" not in str(error.value) and not output.exists()


def test_a_subject_of_two_kinds_is_told(tmp_path: Path) -> None:
    data = write_sets(tmp_path, people=1)
    kind = {"subject": "sks dog", "class_prompt": "a photo of dog"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"twin_of": "apdm/table1-person", "kinds": {"a": kind, "b": kind}}))
    with pytest.raises(UserError, match="is of two kinds, a and b"):
        read_subjects(str(data), load_recipe(str(file)), None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "recipe must be given"),
        (["apdm/table99"], 'there is no recipe "apdm/table99"'),
        (["apdm/table99", "--output_dir", "x"], 'there is no recipe "apdm/table99"; apdm reproduce --list names all'),
        (["apdm/table1-person"], "output_dir must be given"),
        (["apdm/table1-person", "--output_dir", "x"], "data must be given for apdm/table1-person"),
        (
            ["miniature/apdm-table1-person", "--output_dir", "x", "--rows", "apmd"],
            "has no row apmd; there are dreambooth",
        ),
        (["miniature/apdm-table1-person", "--output_dir", "x", "--data", "."], "draws its people"),
    ],
)
def test_bad_words_are_told_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [("sd16: x", '"sd16" is no model that a table needs'), ("sd15: nowhere", "no such folder or file")],
)
def test_models_that_are_unknown_or_missing_are_told(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(f"{line}\n")
    with pytest.raises(UserError, match="models.yaml") as error:
        read_models(str(tmp_path / "models.yaml"))
    assert said in str(error.value)
