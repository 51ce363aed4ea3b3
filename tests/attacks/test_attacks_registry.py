"""Attacks by name: found in the package's files, made from text, and refused with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

import apdm.attacks
from apdm.attacks import Attack
from apdm.attacks.adaptive import Adaptive
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.editing import Editing
from apdm.attacks.lora import LoRA
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.purify import Jpeg
from apdm.attacks.registry import (
    ATTACKS,
    PURIFIERS,
    ZERO_SHOTS,
    make,
    make_purifier,
    make_zero_shot,
    refuse_repeats,
)
from apdm.attacks.restoration import Interpolation
from apdm.attacks.two_stage import TwoStage
from apdm.config.prompts import default_class_prompt
from apdm.core.errors import UserError, UserErrors
from tools.portraits.attacks import BY_ATTACK

NOMINAL = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of a person"}


def test_every_file_of_the_package_is_looked_into_and_names_are_unique_and_sorted_by_file():
    assert ATTACKS.classes()["lora"] is LoRA and ATTACKS.classes()["adaptive"] is Adaptive
    found = [*ATTACKS.classes().values(), *PURIFIERS.classes().values(), *ZERO_SHOTS.classes().values()]
    names = [cls.name for cls in found]
    assert len(names) == len(set(names))
    files = [cls.__module__ for cls in ATTACKS.classes().values()]
    assert files == sorted(files)
    texts = {path: path.read_text() for path in Path(apdm.attacks.__file__).parent.glob("*.py")}
    for name in names:
        assert sum(f'name: ClassVar[str] = "{name}"' in text for text in texts.values()) == 1


@pytest.mark.parametrize("name", ATTACKS.classes())
def test_every_attack_is_made_from_its_name_and_says_what_it_assumes(name: str):
    attack: Attack = make(name, **NOMINAL, seed=4)
    assert attack.name == name and attack.assumes
    assert isinstance(attack.needs, tuple)
    assert attack.prompt("a portrait of sks person")


@pytest.mark.parametrize("name", [*PURIFIERS.classes()])
def test_every_purifier_is_made_from_its_name(name: str):
    assert make_purifier(name, has_originals=True).name == name


def test_options_win_over_the_attacks_nominal_which_wins_over_the_common_one():
    attack = make(
        "lora:rank=32,train_text_encoder=true,target=all",
        by_attack={"lora": {"learning_rate": 1e-2}, "dreambooth": {"learning_rate": 7.0}},
        **NOMINAL,
        learning_rate=1e-5,
        max_train_steps=100,
        unheard_of=1,
    )
    assert attack == LoRA(
        **NOMINAL, rank=32, train_text_encoder=True, target="all", learning_rate=1e-2, max_train_steps=100
    )


def test_the_miniature_world_names_attacks_that_there_are():
    assert set(BY_ATTACK) <= set(ATTACKS.classes())


def test_factors_multiply_the_nominal_values_or_the_defaults():
    attack = make("dreambooth:learning_rate_factor=1/3,steps_factor=2", **NOMINAL, learning_rate=3e-4)
    assert attack.params()["learning_rate"] == pytest.approx(1e-4) and attack.max_train_steps == 1600


def test_another_identifier_and_noun_are_in_the_training_and_in_what_is_asked():
    attack = make("dreambooth:identifier=t@t", **NOMINAL)
    assert attack.instance_prompt == "a photo of t@t person" and attack.class_prompt == "a photo of a person"
    assert attack.prompt("a portrait of sks person") == "a portrait of t@t person"
    attack = make("lora:identifier=t@t,class_noun=man", **NOMINAL)
    assert (attack.instance_prompt, attack.class_prompt) == ("a photo of t@t man", "a photo of a man")
    assert attack.prompt("a portrait of sks person") == "a portrait of t@t man"
    attack = make("dreambooth:class_noun=man", **NOMINAL)
    assert attack.prompt("sks person in the snow") == "sks man in the snow"
    attack = make("textual_inversion:identifier=t@t", **NOMINAL)
    assert attack.prompt("a portrait of sks person") == "a portrait of <subject> person"
    attack = make("two_stage:attack=lora,identifier=t@t,description=with red hair", **NOMINAL).attack
    assert (attack.instance_prompt, attack.class_prompt) == (
        "a photo of t@t person with red hair",
        "a photo of a person",
    )
    assert attack.prompt("a portrait of sks person") == "a portrait of t@t person with red hair"


@pytest.mark.parametrize(
    "spec", ["dreambooth", "textual_inversion", "textual_inversion:num_vectors=2", "custom_diffusion"]
)
@pytest.mark.parametrize(
    "other",
    ["identifier=t@t", "class_noun=man", "identifier=t@t,class_noun=man", "class_noun=man,description=with red hair"],
)
def test_under_another_name_what_is_drawn_is_what_was_trained(spec: str, other: str):
    attack = make(f"{spec}{',' if ':' in spec else ':'}{other}", **NOMINAL)
    assert attack.prompt(NOMINAL["instance_prompt"]) == attack.instance_prompt
    described = " with red hair" * ("red" in other)
    assert attack.instance_prompt.endswith((" man" if "man" in other else " person") + described)
    assert (
        attack.prompt("sks person in the snow") == attack.instance_prompt.removeprefix("a photo of ") + " in the snow"
    )


@pytest.mark.parametrize("spec", ["textual_inversion", "custom_diffusion", "lora:identifier=zwx"])
def test_only_whole_words_are_the_subject(spec: str):
    """The identifier here, "per", is in "person" too."""
    attack = make(spec, instance_prompt="a photo of per person", class_prompt="a photo of person")
    word = attack.instance_prompt.split()[3]
    assert attack.instance_prompt == f"a photo of {word} person"
    for asked in ("a person: {}, {}-like", "\u4e00{}\u4eba"):  # Chinese writes no spaces
        assert attack.prompt(asked.format("per", "per")) == asked.format(word, word)


@pytest.mark.parametrize(
    ("instance_prompt", "trained"),
    [
        ("A photo of Sks person", "A photo of <subject> person"),
        ("a photo of sks person.", "a photo of <subject> person."),
        ("photo of the sks person", "photo of the <subject> person"),
    ],
)
def test_an_instance_prompt_has_its_identifier_under_the_class_prompt_that_follows_from_it(
    instance_prompt: str, trained: str
):
    made = make(
        "textual_inversion", instance_prompt=instance_prompt, class_prompt=default_class_prompt(instance_prompt)
    )
    assert made.instance_prompt == trained and made.prompt(instance_prompt) == trained


@pytest.mark.parametrize("asked", ["Sks.", "a photo of SKS, outdoors"])  # an audit takes such prompts
def test_the_subject_is_found_in_any_case(asked: str):
    attack = make("textual_inversion", **NOMINAL)
    assert "<subject>" in attack.prompt(asked) and "sks" not in attack.prompt(asked).lower()


def test_a_staged_attack_gives_the_options_it_does_not_know_to_the_one_inside():
    attack = make(
        "two_stage:attack=lora,benign_steps=5,rank=32,steps_factor=2",
        by_attack={"two_stage": {"benign_learning_rate": 1e-3}, "lora": {"max_train_steps": 10}},
        **NOMINAL,
    )
    inner = LoRA(**NOMINAL, rank=32, max_train_steps=20)
    assert attack == TwoStage(attack=inner, benign_steps=5, benign_learning_rate=1e-3)
    attack = make("two_stage:benign_steps=5", by_attack={"two_stage": {"benign_steps": 9}}, **NOMINAL)
    assert attack.params()["benign_steps"] == 5
    assert make("interpolation:alpha=1", **NOMINAL) == Interpolation(attack=DreamBooth(**NOMINAL), alpha=1.0)


def test_photos_are_an_option_of_every_attack():
    attack = make("two_stage:photos=jpeg/quality=50,num_photos=4", **NOMINAL)
    assert isinstance(attack, PhotoTreatment) and attack.purifier == Jpeg(quality=50) and attack.num_photos == 4
    assert isinstance(attack.attack, TwoStage)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("lorra", 'no attack "lorra"; did you mean "lora"'),
        ("lora:rnk=3", 'lora has no option "rnk"; did you mean "rank"'),
        ("lora:step_factor=3", 'lora has no option "step_factor"; did you mean "steps_factor"'),
        ("lora:rank=big", 'rank is "big"; it needs a whole number'),
        ("lora:rank=-1", "cannot be below 0"),
        ("lora:target=everything", "one of attention, linear, conv, all"),
        ("lora:rank", "one option=value"),
        ("lora:rank=1,rank=2", "each option once"),
        ("lora:steps_factor=0", "is no factor"),
        ("lora:renamed=a", 'no option "renamed"'),
        ("two_stage:attack=lorra", 'did you mean "lora"'),
        ("dreambooth:photos=jpg", 'no purifier "jpg"; did you mean "jpeg"'),
        ("dreambooth:photos=jpeg/quality=500", "quality is 500; it needs to be at most 100"),
        ("dreambooth:photos=crop/margin=0.5", "margin is 0.5; it needs to be less than 0.5"),
        ("dreambooth:photos=noise/std=-1", "cannot be below 0"),
        ("dreambooth:photos=upscale/std=-1", "cannot be below 0"),
        ("dreambooth:photos=blur/sigma=-1", "cannot be below 0"),
        ("dreambooth:photos=resize/factor=0", "factor is 0; it needs to be more than 0"),
        ("dreambooth:photos=diffusion/strength=0.01", "is less than one of 50 sampling steps, so the photo would stay"),
        ("dreambooth:photos=mix", "only an audit of protected photos has both"),
        ("gone.py:Mine", "gone.py does not exist"),
    ],
)
def test_a_name_or_option_that_is_not_there_is_one_clear_line(spec: str, problem: str):
    with pytest.raises(UserError) as caught:
        make(spec, **NOMINAL)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_an_attack_in_a_file_of_ones_own_is_named_by_path(tmp_path: Path):
    path = tmp_path / "my_attack.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from apdm.attacks.dreambooth import DreamBooth\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(DreamBooth):\n"
        "    strength: int = 1\n"
        "    name: ClassVar[str] = 'mine'\n"
    )
    attack = make(f"{path}:Mine:strength=3,steps_factor=2", **NOMINAL)
    assert attack.name == "mine" and attack.params()["strength"] == 3 and attack.max_train_steps == 1600
    with pytest.raises(UserError, match='no attack "Yours"; it has Mine'):
        make(f"{path}:Yours", **NOMINAL)
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="cannot be loaded: ModuleNotFoundError"):
        make(f"{path}:Mine", **NOMINAL)


@pytest.mark.parametrize(
    ("spec", "steps", "problem"),
    [
        ("masactrl", 4, "start_step is 4, and a picture is drawn in 4 steps, counted from 0"),
        ("masactrl:start_step=60", 50, "write masactrl:start_step=25"),
        ("img2img:strength=0.01", 50, "img2img: strength is 0.01, which is less than one of 50 sampling steps"),
        ("inpainting:strength=0.3", 3, "inpainting: strength is 0.3"),
        ("diffedit:strength=0.1", 5, "diffedit: strength is 0.1"),
        ("diffedit:mask_strength=0.1", 7, "mask_strength is 0.1, which is less than one of 7 .*; give at least 0.15"),
    ],
)
def test_an_edit_that_would_change_nothing_in_so_many_steps_is_refused(spec: str, steps: int, problem: str):
    made = make_zero_shot(spec)
    assert isinstance(made, Editing)
    with pytest.raises(UserError, match=problem):
        made.check_steps(steps)
    made.check_steps(100)


def test_attacks_that_differ_in_nothing_but_their_seed_are_not_the_same():
    specs = ["lora:seed=1", "lora:seed=2", "lora"]
    refuse_repeats("attack", specs, lambda spec: make(spec, **NOMINAL))
    with pytest.raises(UserError, match='the attacks "lora:seed=1" and "lora:seed=1,rank=4" are the same'):
        refuse_repeats("attack", [*specs, "lora:seed=1,rank=4"], lambda spec: make(spec, **NOMINAL))


def test_each_attack_of_a_list_that_cannot_be_made_is_told_of():
    with pytest.raises(UserErrors) as caught:
        refuse_repeats("attack", ["masactrl:foo=1", "img2img:strength=2", "diffedit"], make_zero_shot)
    assert ['"foo"' in str(one) or "strength is 2" in str(one) for one in caught.value.errors] == [True, True]


def test_masactrl_begins_where_its_authors_do_and_may_begin_at_once():
    assert make_zero_shot("masactrl").params() == {"source_prompt": "", "start_step": 4, "start_layer": 10}
    everywhere = make_zero_shot("masactrl:start_step=0,start_layer=0").params()
    assert (everywhere["start_step"], everywhere["start_layer"]) == (0, 0)
    with pytest.raises(UserError, match="cannot be below 0"):
        make_zero_shot("masactrl:start_layer=-1")


def test_editing_is_made_by_name():
    assert make_zero_shot("img2img:strength=0.7").params() == {"strength": 0.7}
    assert set(ZERO_SHOTS.classes()) == {"diffedit", "faceid", "img2img", "inpainting", "masactrl"}
