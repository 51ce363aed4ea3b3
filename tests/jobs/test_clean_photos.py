"""Other, clean photos of a subject, which surrogates learn: given to `apdm perturb`, and found by `apdm reproduce`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_stable_diffusion import write_sets

from apdm.config import make_config
from apdm.config.commands.perturb import PerturbConfig
from apdm.config.groups.job import JobConfig
from apdm.config.plugins import PROTECTIONS
from apdm.core.errors import UserError
from apdm.jobs.perturb import perturb
from apdm.jobs.reproducing.recipes import load_recipe, merged, recipe_names
from apdm.jobs.reproducing.steps import CLEAN, with_clean
from apdm.jobs.reproducing.subjects import read_subjects
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects


def options(people: Path, output: Path, **fsmg: object) -> JobConfig:
    layer = {"method": "fsmg", "fsmg": {"static_steps": 4, "ascent_steps": 2, "prior_loss_weight": 0.0, **fsmg}}
    layer["fsmg"] |= {"learning_rate": 1e-2}  # type: ignore[operator]
    return make_config(
        PerturbConfig,
        {
            "pretrained_model_name_or_path": str(PIPELINE),
            "instance_data_dir": str(people),
            "output_dir": str(output),
            "instance_prompt": "a photo of t@t person",
            "class_prompt": "a photo of a person",
            "resolution": 64,
            "num_threads": 1,
            "image_layer": {**layer, "zero_shot": {"enabled": False}},
        },
    )


def test_a_surrogate_learns_the_photos_of_clean_data_dir_and_each_subject_needs_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_subjects(tmp_path / "p", protected=1, others=0, consenting=0, strangers=1)
    people, other = tmp_path / "p/protected", tmp_path / "p/attacker"
    given = {name: folder for name, folder in (("none", None), ("same", people), ("other", other))}
    made = {}
    for name, folder in given.items():
        perturb(options(people, tmp_path / name, clean_data_dir=folder and str(folder)))
        made[name] = (tmp_path / name / "images/s01/000.png").read_bytes()
    assert made["none"] == made["same"] != made["other"]
    assert "fsmg.clean_data_dir has 4 photos of s01 that are protected too; give others" in caplog.text
    shutil.move(other / "s01", other / "s02")
    with pytest.raises(UserError, match=r"clean_data_dir .* has no photos of s01; add some") as caught:
        perturb(options(people, tmp_path / "gone", clean_data_dir=str(other)))
    assert "\n" not in str(caught.value) and not (tmp_path / "gone").exists()


def test_a_table_takes_set_b_as_clean_photos_where_all_its_subjects_have_one(tmp_path: Path) -> None:
    data, recipe = write_sets(tmp_path / "data", people=2), load_recipe("apdm/table1-person")
    found = read_subjects(str(data), recipe, None)
    assert [[photo.parent.name for photo in one.clean] for one in found] == [["set_B"] * 4] * 2
    shutil.rmtree(data / "n000001/set_B")
    assert not any(one.clean for one in read_subjects(str(data), recipe, None))
    # An attacker who has set B is not helped by a surrogate that knows it.
    spare = next(one for one in map(load_recipe, recipe_names()) if one.uses_spare and not one.is_miniature)
    assert not any(one.clean for one in read_subjects(str(data), replace(spare, kinds={}), None))


@pytest.mark.parametrize("name", ["apdm/table1-person", "dladiff/table1-celeba", "anti-diffusion/dreambooth"])
def test_surrogates_of_anti_dreambooth_are_the_papers_in_tables_and_frozen_readers_in_their_twins(name: str) -> None:
    def aspl(recipe_name: str) -> dict[str, object]:
        recipe = load_recipe(recipe_name)
        perturbed = merged(recipe.perturb, recipe.protections["anti_dreambooth"].perturb or {})
        found: dict[str, object] = perturbed["image_layer"]["aspl"]
        return found

    assert aspl(name) == {"train_text_encoder": True, "clean_data_dir": CLEAN}
    assert with_clean({"aspl": aspl(name)}, None) == {"aspl": {"train_text_encoder": True}}
    assert with_clean({"aspl": aspl(name)}, "/x")["aspl"]["clean_data_dir"] == "/x"
    assert aspl(f"miniature/{name.replace('/', '-')}").keys() == {"learning_rate", "batch_size"}


@pytest.mark.parametrize("option", ["clean_data_dir=/tmp", "clean_set=A", "train_text_encoder=true"])
def test_all_options_of_a_protection_may_follow_its_name(option: str) -> None:
    for name in ("aspl", "fsmg", "disdiff"):
        PROTECTIONS.check(f"{name}:{option}")
    with pytest.raises(UserError, match="has no option"):
        PROTECTIONS.check("aspl:clean_sett=A")
