"""Class pictures: drawn once, drawn further where some are missing, never mistaken for another model's."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from apdm.core.errors import UserError
from apdm.data.class_images import ClassImages
from apdm.families import load_family

RECIPE = ClassImages(
    prompt="a photo of person", model="abc", seed=3, num_inference_steps=1, guidance_scale=1.0, resolution=16
)


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_an_interrupted_drawing_goes_on_to_the_same_pictures(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    whole = RECIPE.ensure(family, tmp_path / "whole", 5, batch_size=2, show_progress=False)
    RECIPE.ensure(family, tmp_path / "part", 3, batch_size=2, show_progress=False)
    (tmp_path / "part/00001.png").unlink()
    part = RECIPE.ensure(family, tmp_path / "part", 5, batch_size=4, show_progress=False)
    assert [path.name for path in part] == [path.name for path in whole]
    assert contents(part) == contents(whole)


def test_what_is_there_is_not_drawn_again(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    paths = RECIPE.ensure(family, tmp_path, 2, batch_size=2, show_progress=False)
    before = [path.stat().st_mtime_ns for path in paths]
    again = RECIPE.ensure(family, tmp_path, 2, batch_size=2, show_progress=False)
    assert [path.stat().st_mtime_ns for path in again] == before


def test_pictures_of_another_model_are_refused_or_replaced_but_never_used(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    RECIPE.ensure(family, tmp_path / "class", 2, batch_size=2, show_progress=False)
    other = dataclasses.replace(RECIPE, model="def", seed=9)
    with pytest.raises(UserError, match="another model"):
        other.ensure(family, tmp_path / "class", 2, batch_size=2, show_progress=False)
    replaced = other.ensure(family, tmp_path / "class", 2, batch_size=2, replace=True, show_progress=False)
    fresh = other.ensure(family, tmp_path / "fresh", 2, batch_size=2, show_progress=False)
    assert contents(replaced) == contents(fresh)


def test_a_folder_of_the_users_own_pictures_is_taken_as_it_is(tiny_pipeline, tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    paths = RECIPE.ensure(load_family(tiny_pipeline), tmp_path, 5, batch_size=2, replace=True, show_progress=False)
    assert [path.name for path in paths] == ["a.png", "b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
