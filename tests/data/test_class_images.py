"""Class pictures: drawn once, drawn further where some are missing, never mistaken for another model's."""

import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from apdm.core.errors import UserError
from apdm.data.class_images import ensure_class_images
from apdm.data.drawn_pictures import PictureRecipe
from apdm.families import load_family
from apdm.families.configuration import configuration_hash

RECIPE = PictureRecipe(
    prompt="a photo of person",
    model="abc",
    variant=None,
    configuration="def",
    seed=3,
    num_inference_steps=1,
    guidance_scale=1.0,
    resolution=16,
)


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_an_interrupted_drawing_goes_on_to_the_same_pictures(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    whole = ensure_class_images(RECIPE, family, tmp_path / "whole", 5, batch_size=2)
    ensure_class_images(RECIPE, family, tmp_path / "part", 3, batch_size=2)
    (tmp_path / "part/00001.png").unlink()
    part = ensure_class_images(RECIPE, family, tmp_path / "part", 5, batch_size=4)
    assert [path.name for path in part] == [path.name for path in whole]
    assert contents(part) == contents(whole)


def test_what_is_there_is_not_drawn_again(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    paths = ensure_class_images(RECIPE, family, tmp_path, 2, batch_size=2)
    before = [path.stat().st_mtime_ns for path in paths]
    again = ensure_class_images(RECIPE, family, tmp_path, 2, batch_size=2)
    assert [path.stat().st_mtime_ns for path in again] == before


def test_pictures_that_are_there_and_each_new_batch_are_checked_as_soon_as_they_can_be(tiny_pipeline, tmp_path):
    family, told = load_family(tiny_pipeline), []

    def draw(count: int) -> list[Path]:
        there = sorted(tmp_path.glob("*.png"))
        told.clear()

        def check(files) -> None:
            told.append(([path.stem[-1] for path in files], len(list(tmp_path.glob("*.png"))) - len(there)))

        return RECIPE.draw(family, tmp_path, count, batch_size=2, what="pictures", check=check)

    draw(3)
    assert told == [(["0", "1"], 2), (["2"], 3)]
    draw(6)[1].unlink()
    assert told == [(["0", "1", "2"], 0), (["3", "4"], 2), (["5"], 3)]
    draw(6)
    assert told == [(["0", "2", "3", "4", "5"], 0), (["1"], 1)]
    draw(6)
    assert told == [(["0", "1", "2", "3", "4", "5"], 0)]


def test_pictures_of_another_model_are_refused_or_replaced_but_never_used(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    ensure_class_images(RECIPE, family, tmp_path / "class", 2, batch_size=2)
    other = dataclasses.replace(RECIPE, model="def", seed=9)
    with pytest.raises(UserError, match="another model"):
        ensure_class_images(other, family, tmp_path / "class", 2, batch_size=2)
    replaced = ensure_class_images(other, family, tmp_path / "class", 2, batch_size=2, replace=True)
    fresh = ensure_class_images(other, family, tmp_path / "fresh", 2, batch_size=2)
    assert contents(replaced) == contents(fresh)


def test_a_folder_of_the_users_own_pictures_is_taken_as_it_is(tiny_pipeline, tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    paths = ensure_class_images(RECIPE, load_family(tiny_pipeline), tmp_path, 5, batch_size=2, replace=True)
    assert [path.name for path in paths] == ["a.png", "b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), "red").save(file)
    return file


def ensure(folder: Path, tiny_pipeline: Path, count: int = 2, **changes: object) -> list[Path]:
    recipe = dataclasses.replace(RECIPE, **changes)
    return ensure_class_images(recipe, load_family(tiny_pipeline), folder, count, batch_size=2)


def test_the_users_own_pictures_may_lie_in_folders_of_repeats(tiny_pipeline, tmp_path):
    picture(tmp_path / "elsewhere/d.png")
    folder = tmp_path / "class"
    files = [picture(folder / name) for name in ("10_person/a.png", "10_person/b.JPG", "1_person/more/c.webp")]
    (folder / "2_person").symlink_to(tmp_path / "elsewhere")
    files.append(folder / "2_person/d.png")
    picture(folder / "10_person/.hidden/d.png")
    (folder / "10_person/a.txt").write_text("a caption")
    assert ensure(folder, tiny_pipeline, 5) == files
    assert not list(tmp_path.rglob("made_by_apdm.json"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.png", "10_person/b.png"], "10_person does too"),
        (["made_by_apdm.json", "00000.png", "10_person/b.png"], "10_person/b.png lies among class pictures"),
        (["made_by_apdm.json", "00000.png", "mine.jpg"], "mine.jpg lies among class pictures"),
        (
            ["old/class_images/made_by_apdm.json", "old/class_images/00000.png"],
            "old/class_images, inside .* was made by",
        ),
        (["run/.apdm", "run/images/s01/a.png"], "run, inside class_data_dir .* was made by this program"),
        ([".apdm", "samples/a.png"], "is the output folder of a run"),
        (["captions.txt"], "captions.txt and no class picture"),
        (["pictures.zip"], "pictures.zip and no class picture"),
    ],
)
@pytest.mark.parametrize("replace", [False, True])
def test_nothing_is_drawn_or_deleted_among_files_of_the_user(files, said, replace, tiny_pipeline, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name) if name.endswith(("png", "jpg")) else (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said):
        ensure_class_images(RECIPE, load_family(tiny_pipeline), tmp_path, 2, batch_size=2, replace=replace)
    assert sorted(tmp_path.rglob("*")) == before


def test_litter_of_an_operating_system_does_not_count(tiny_pipeline, tmp_path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("")
    assert len(ensure(tmp_path, tiny_pipeline)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variant": "fp16"}, "variant None instead of fp16"),
        ({"resolution": 32}, "resolution 16 instead of 32"),
        ({"prompt": "a photo of a dog"}, "prompt a photo of person instead of a photo of a dog"),
        ({"model": "xyz"}, "another model"),
        ({"configuration": "xyz"}, "another configuration"),
        ({"guidance_scale": 2.0}, "guidance_scale 1.0 instead of 2.0"),
        ({"num_inference_steps": 3}, "num_inference_steps 1 instead of 3"),
    ],
)
def test_pictures_that_were_drawn_otherwise_are_refused_with_the_difference(change, said, tiny_pipeline, tmp_path):
    ensure(tmp_path / "class", tiny_pipeline)
    with pytest.raises(UserError, match=said):
        ensure(tmp_path / "class", tiny_pipeline, **change)
    assert len(ensure(tmp_path / "class", tiny_pipeline)) == 2


def test_a_models_configuration_is_the_same_wherever_the_model_lies_and_another_where_it_draws_otherwise(
    tiny_pipeline, tmp_path
):
    here = configuration_hash(load_family(tiny_pipeline))
    copied = shutil.copytree(tiny_pipeline, tmp_path / "copy")
    assert configuration_hash(load_family(copied)) == here
    assert configuration_hash(load_family(copied, dtype=torch.float16)) == here  # dry runs load other float types
    for file, change in (
        ("scheduler/scheduler_config.json", {"_diffusers_version": "0.1.0"}),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}),
        ("text_encoder/config.json", {"layer_norm_eps": 1e-4}),
    ):
        place = Path(shutil.copytree(tiny_pipeline, tmp_path / file / str(*change))) / file
        place.write_text(json.dumps(json.loads(place.read_text()) | change))
        same = configuration_hash(load_family(place.parents[1])) == here
        assert same == ("_diffusers_version" in change), change
    place = shutil.copytree(tiny_pipeline, tmp_path / "other words") / "tokenizer"
    other = CLIPTokenizer.from_pretrained(place)
    other.add_tokens(["sks"])
    other.save_pretrained(place)
    assert configuration_hash(load_family(place.parent)) != here


def test_a_recipe_of_an_older_version_or_a_damaged_one_is_not_trusted(tiny_pipeline, tmp_path):
    ensure(tmp_path / "class", tiny_pipeline)
    for text in ('{"prompt": "a photo of person"}', "no JSON", "[1]"):
        (tmp_path / "class/made_by_apdm.json").write_text(text)
        with pytest.raises(UserError, match="drawn otherwise"):
            ensure(tmp_path / "class", tiny_pipeline)
    recipe = dataclasses.asdict(RECIPE)
    del recipe["variant"], recipe["configuration"]
    (tmp_path / "class/made_by_apdm.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="a version of this program that did not record configuration and variant"):
        ensure(tmp_path / "class", tiny_pipeline)


def test_a_file_is_no_folder_of_class_pictures(tiny_pipeline, tmp_path):
    with pytest.raises(UserError, match="is a file"):
        ensure(picture(tmp_path / "class.png"), tiny_pipeline)


def test_two_runs_that_draw_into_one_folder_at_the_same_time_both_get_their_pictures(tiny_pipeline, tmp_path):
    families = [load_family(tiny_pipeline) for _ in range(2)]
    whole = ensure_class_images(RECIPE, families[0], tmp_path / "whole", 6, batch_size=1)
    found: list[list[Path]] = []

    def draw(family) -> None:
        found.append(ensure_class_images(RECIPE, family, tmp_path / "shared", 6, batch_size=1))

    threads = [threading.Thread(target=draw, args=[family]) for family in families]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert [contents(paths) for paths in found] == [contents(whole)] * 2
