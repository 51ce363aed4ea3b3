"""`apdm attack` with attacks that train nothing: they edit the photos, or draw from one of them with an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_run import options, words, write_people
from PIL import Image
from safetensors.torch import load_file, save_file

import apdm
from apdm.audit.results.store import finished_cells
from apdm.cli import main
from apdm.portraits import ADAPTER, PIPELINE


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("photos"))


def test_attacks_without_training_draw_from_the_photos_and_need_no_photos_of_their_own(
    photos: Path, tmp_path: Path
) -> None:
    """They may be judged on the photos that they edit, each of which has a prompt of its own."""
    people = Path(shutil.copytree(photos, tmp_path / "people"))
    (people / "s01/prompt.txt").write_text("a photo of a person wearing a red shirt")
    specs = ["img2img:strength=0.5", "masactrl:start_layer=1,start_step=1", "faceid"]
    changes = {"attack": specs, "resolution": 64, "num_images": 3, "holdout_data_dir": str(people)}
    values = options(
        PIPELINE, people, tmp_path / "out", **changes, faceid_adapter=str(ADAPTER), edit_prompts=str(people)
    )
    values["strangers_data_dir"] = str(photos.parent / "strangers")
    results = apdm.attack(**values).results
    assert results is not None
    assert [(row.attack, row.status, row.horizon) for row in results.attacks] == [
        (name, "ok", 0) for name in ("img2img", "masactrl", "faceid")
    ]
    edited, controlled, drawn = results.attacks
    assert edited.quality["edit_similarity"] is not None and "edit_similarity" not in drawn.quality
    assert controlled.quality["edit_similarity"] != edited.quality["edit_similarity"]
    assert drawn.params["adapter"] == ADAPTER.name and len(edited.scores["portrait-a"]) == 6
    (people / "s01/prompt.txt").write_text("a photo of a person wearing a blue shirt")
    again = apdm.attack(**{**values, "attack": specs[:1], "output_dir": str(tmp_path / "other")}).results
    assert again is not None and again.attacks[0].quality != edited.quality
    with Image.open(next((tmp_path / "out/pictures").rglob("img2img*/**/after.png"))) as sheet:
        assert sheet.width > 64
    other = tmp_path / "changed" / ADAPTER.name  # another adapter under the same name draws anew
    other.parent.mkdir()
    save_file({name: 2 * tensor for name, tensor in load_file(ADAPTER).items()}, other)
    (people / "s01/prompt.txt").write_text("a photo of a person wearing a red shirt")
    values |= {"attack": [specs[0], "faceid"], "faceid_adapter": str(other), "output_dir": str(tmp_path / "third")}
    apdm.attack(**values, reuse_audits=[str(tmp_path / "out")])
    first, second = ({cell.name for cell in finished_cells(tmp_path / name / "cells")} for name in ("out", "third"))
    assert len(second - first) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"attack": ["faceid"]},
            "faceid draws with an adapter that somebody trained; name its file with",
        ),
        ({"attack": ["faceid:scale=2"], "faceid_adapter": str(ADAPTER)}, '"faceid:scale=2": faceid takes no options'),
        ({"attack": ["img2img:strength=1.5"]}, "strength is 1.5; it needs to be at most 1"),
        ({"attack": ["inpainting:left=0.8"]}, "left must not be above right"),
        ({"attack": ["img2img"], "save_model": True}, "img2img trains no model that could be saved"),
        ({"attack": ["lora"], "edit_prompts": "{people}"}, "edit_prompts goes with attacks that edit photos"),
        ({"attack": ["diffedit"], "edit_prompts": "{people}"}, "has no prompt for s01/"),
        ({"attack": ["masactrl:start_layer=1"]}, "start_step is 4, and a picture is drawn in 2 steps"),
        ({"attack": ["img2img:strength=0.4"]}, "strength is 0.4, which is less than one of 2 sampling steps"),
        ({"attack": ["masactrl:start_step=1"]}, "start_layer is 10, and this model has"),
        ({"attack": ["img2imgg"]}, 'there is no attack "img2imgg"'),
    ],
)
def test_what_an_attack_without_training_lacks_is_told_before_the_work(
    tiny_pipeline: Path,
    photos: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {key: str(photos) if value == "{people}" else value for key, value in changes.items()}
    assert main(["attack", *words(options(tiny_pipeline, photos, tmp_path / "out", **changes))]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["masactrl", "diffedit:strength=0.1"])
def test_an_attack_that_does_not_fit_the_model_asks_for_no_other_option(
    spec: str, folders: Callable[[str], Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step that it would start at, or its strength, lies beyond the two sampling steps too."""
    assert main(["attack", *words(options(folders("sd3"), photos, tmp_path / "out", attack=[spec]))]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert error.endswith("leave it out")
