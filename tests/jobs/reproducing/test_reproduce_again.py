"""`apdm reproduce` in a folder that it was run in before: what is kept, what is made again, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from apdm.config import ReproduceConfig
from apdm.core.errors import UserError
from apdm.distributed.processes import ProcessGroup
from apdm.jobs.reproduce import reproduce
from apdm.jobs.reproducing.recipes import load_recipe
from apdm.jobs.reproducing.steps import Steps
from apdm.jobs.reproducing.subjects import draw_people, read_subjects

TWIN = "miniature/apdm-table1-person"


def test_an_output_folder_keeps_its_table(tmp_path: Path) -> None:
    (tmp_path / ".apdm").write_text("made by apdm\n")
    (tmp_path / "table.json").write_text('{"title": "another table"}')
    config = ReproduceConfig(recipe=TWIN, output_dir=str(tmp_path), rows=["dreambooth"])
    with pytest.raises(UserError, match="holds another table: another table; choose another output_dir"):
        reproduce(config)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\0"])
def test_a_damaged_table_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / ".apdm").write_text("made by apdm\n")
    (tmp_path / "table.json").write_text(text)
    config = ReproduceConfig(recipe=TWIN, output_dir=str(tmp_path), rows=["dreambooth"])
    with pytest.raises(UserError, match="table.json is damaged; delete it"):
        reproduce(config)


def test_more_people_are_drawn_beside_those_who_are_there(tmp_path: Path) -> None:
    recipe = load_recipe(TWIN)
    draw_people(tmp_path / "people", 1)
    (first,) = read_subjects(str(tmp_path / "people"), recipe, 1)
    before = [photo.read_bytes() for photo in [*first.photos, *first.holdout]]
    draw_people(tmp_path / "people", 2)
    again, second = read_subjects(str(tmp_path / "people"), recipe, 2)
    assert before == [photo.read_bytes() for photo in [*again.photos, *again.holdout]]
    assert second.id == "s02" and second.photos[0].read_bytes() not in before
    draw_people(tmp_path / "people", 1)
    assert len(read_subjects(str(tmp_path / "people"), recipe, 2)) == 2


def test_what_was_made_with_other_files_of_a_model_is_made_again(tmp_path: Path) -> None:
    """A model may be replaced at the same path between two runs. Its place and its documents do not matter."""
    model, elsewhere = tmp_path / "sd15", tmp_path / "elsewhere"
    (model / "scheduler").mkdir(parents=True)
    for name in ("unet.safetensors", "scheduler/scheduler_config.json", "README.md"):
        (model / name).write_text("as released")
    recipe = load_recipe("apdm/table1-person")
    machine: dict[str, Any] = {"num_threads": 1, "processes": ProcessGroup(), "device": torch.device("cpu")}

    def step(place: str) -> str:
        steps = Steps(recipe=recipe, output=tmp_path / "out", places={"sd15": place, "dino": "name/dino"}, **machine)
        return steps._folder(recipe, "attack", {}, []).name

    first = step(str(model))
    (model / "README.md").write_text("a document")
    assert step(str(shutil.copytree(model, elsewhere))) == step(str(model)) == first
    for name in ("unet.safetensors", "scheduler/scheduler_config.json"):
        (model / name).write_text("of another model")
        assert step(str(model)) != first
        (model / name).write_text("as released")
    assert step(str(model)) == first != step("name/model") != step("name/other")
