"""What a choice in the page means, as options of `apdm perturb` and in words."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from apdm.app import texts
from apdm.app.choices import LEVELS, METHODS, OWN, Choice, methods, strengths
from apdm.config import AppConfig, PerturbConfig, load_config, make_config
from apdm.config.groups.image_layer import BUDGETS, NO_METHOD
from apdm.config.groups.subject_kind import SubjectKind
from apdm.config.plugins import PROTECTIONS
from apdm.core.errors import UserError

NO_FACES = {"image_layer.zero_shot.enabled": False}


def config(**options: object) -> PerturbConfig:
    made = make_config(AppConfig, options)
    return made.for_photos(Path("photos"), Path("out"), Path("class"))


def test_without_options_the_page_has_the_settings_of_the_miniature_worlds_file():
    file = Path(__file__).parents[2] / "configs" / "dladiff-portrait.yaml"
    named = load_config(PerturbConfig, ["--config", str(file)])
    bare = config()
    same = {
        "instance_data_dir",
        "output_dir",
        "class_data_dir",
        "overwrite_output_dir",
        "pretrained_model_name_or_path",
    }
    assert replace(bare, **{name: getattr(named, name) for name in same}) == named
    assert Path(bare.pretrained_model_name_or_path).samefile(named.pretrained_model_name_or_path)


def test_with_a_model_the_page_has_the_defaults_of_perturb(tmp_path):
    given = {"pretrained_model_name_or_path": str(tmp_path), "image_layer.method": "encoder"}
    bare = make_config(PerturbConfig, {**given, "instance_data_dir": "photos", "output_dir": "out"})
    assert config(**given) == replace(bare, class_data_dir="class", overwrite_output_dir=True)


def test_photos_come_from_the_page_and_go_nowhere_else():
    with pytest.raises(UserError, match="dataset_name is given, but the photos come from the page"):
        config(dataset_name="people")
    with pytest.raises(UserError, match="report_to is given, but the page sends nothing to a tracker"):
        config(report_to="tensorboard")
    assert config(instance_data_dir="/somewhere", output_dir="/else").instance_data_dir == "photos"


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_the_preset_of_that_name(level):
    chosen = replace(Choice.of(config()), strength=level)
    layer = chosen.apply(config()).image_layer
    assert (round(255 * layer.fine_tuning_epsilon), round(255 * layer.zero_shot_epsilon)) == BUDGETS[level]
    assert f"Each changes by at most {max(BUDGETS[level])}." in chosen.text()


def test_budgets_of_the_users_own_are_in_grey_levels():
    chosen = replace(Choice.of(config()), strength=OWN, fine_tuning=3, zero_shot=9, method="encoder", format="jpeg")
    layer = chosen.apply(config()).image_layer
    assert (layer.epsilon, layer.zero_shot.epsilon) == (3 / 255, 9 / 255)
    assert (layer.method, layer.format) == ("encoder", "jpeg")


@pytest.mark.parametrize(
    "options",
    [
        {"image_layer.preset": "high", "image_layer.method": "encoder:ascent_steps=7"},
        {"image_layer.epsilon": 0.02, "image_layer.method": "none", "image_layer.format": "jpeg"},
        {"image_layer.zero_shot.epsilon": 0.031, "image_layer.zero_shot.max_steps": 5},
        {"image_layer.zero_shot.enabled": False},
    ],
)
def test_the_choice_that_the_page_begins_with_changes_no_option(options):
    given = config(**options)
    assert Choice.of(given).apply(given) == given


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": NO_METHOD, "faces": False}, "nothing would be protected"),
        ({"strength": OWN, "zero_shot": 65}, "from 1 to 64"),
        ({"strength": OWN, "fine_tuning": 0}, "from 1 to 64"),
        ({"strength": "huge"}, "choose again"),
        ({"format": "gif"}, "choose again"),
        ({"method": "file.py:Mine"}, "choose again"),  # no page names a file that the server would run
    ],
)
def test_a_choice_that_the_page_does_not_offer_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        replace(Choice.of(config()), **change).apply(config())


def test_every_method_can_be_chosen_and_is_explained():
    assert set(methods(config())) == {*PROTECTIONS.names(), NO_METHOD} == set(METHODS)
    given = methods(config(**{"image_layer.method": "encoder:ascent_steps=7"}))
    assert next(iter(given.items())) == ("encoder:ascent_steps=7", "Encoder: as the command says (ascent_steps=7)")
    assert {name for _, name in strengths(faces=True)} == {*BUDGETS, OWN}


def test_without_a_layer_for_faces_the_page_does_not_speak_of_them():
    given = {"pretrained_model_name_or_path": "model", "subject_kind": "object"}
    objects = config(**given, instance_prompt="a photo of sks dog", class_prompt="a photo of dog")
    for made, kind, subject in ((objects, "object", "object or animal"), (config(**NO_FACES), "person", "person")):
        choice = Choice.of(made)
        words = [*methods(made).values(), *(text for text, _ in strengths(faces=choice.faces)), choice.text()]
        words += [texts.short(kind, faces=choice.faces), texts.long(kind, faces=choice.faces)]
        words += [texts.miniature(kind, faces=choice.faces)]
        for word in ("face", "recogniser", "None:", " and 11 steps"):
            assert not [text for text in words if word in text], word
        assert any(f"clean photo of the {subject}" in text for text in words)
    assert "person" not in texts.short("object", faces=False) + texts.long("object", faces=False)
    assert "The layer for faces" in texts.long("person", faces=True)


@pytest.mark.parametrize("kind", ["person", "object"])
def test_the_command_that_the_demonstration_names_for_another_model_runs_without_networks_for_faces(kind: SubjectKind):
    _, command, _ = texts.miniature(kind, faces=False).rsplit("`", 2)
    words = shlex.split(command)
    words[words.index("--config") + 1] = str(Path(__file__).parents[2] / "configs" / "dladiff.yaml")
    given = load_config(AppConfig, words[2:])
    assert (given.subject_kind, given.image_layer.zero_shot.enabled) == (kind, False)


def test_noise_is_said_to_protect_nothing():
    assert "protects nothing" in replace(Choice.of(config()), method="noise", faces=False).text()
