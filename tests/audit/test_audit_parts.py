"""The audit's parts: attacks from suites, people from folders, attention maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from apdm.audit.cells.attention import identifier_maps
from apdm.audit.inputs.attack_factory import AttackFactory, check_fits, lengthened
from apdm.audit.inputs.models import check_comparable, is_same
from apdm.audit.inputs.people import AuditSubjects, Person, PhotoFolders
from apdm.audit.inputs.suites import (
    CAPTIONED,
    SUITES,
    Entry,
    available_entries,
    choose_entries,
    cost_factor_warning,
    with_textual_inversion,
)
from apdm.audit.results.models import LeftOut
from apdm.config import AuditConfig, AuditJobConfig, load_config
from apdm.core.errors import UserError
from apdm.data.separate_photos import check_separate
from apdm.data.subjects import load_images
from apdm.families import Family, load_family
from apdm.portraits.subjects import write_photos, write_subjects

MODELS = ("base", "hardened", "placebo", "sibling", "hardened_sibling")


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


# -- suites --------------------------------------------------------------------------------------------------


SKS = "a photo of sks person"


def attack_factory(**options: Any) -> AttackFactory:
    config = AuditConfig(learning_rate=3e-4, train_batch_size=12, nominal_step=100, **options)
    return AttackFactory(config, SKS, "a photo of person")


@pytest.mark.parametrize("suite", SUITES)
def test_every_attack_of_a_suite_can_be_made_and_the_nominal_one_comes_first(suite: str):
    entries, left_out = available_entries(choose_entries(suite, [], attack_factory()), MODELS, attack_factory())
    assert left_out == [] and entries[0].spec == "dreambooth"
    assert len({entry.spec for entry in entries}) == len(entries)
    for entry in entries:
        assert attack_factory().make(entry.spec, seed=1).assumes
        if entry.white_box is not None:
            assert entry.white_box in [other.spec for other in entries]


def test_a_suite_runs_an_attack_once_even_where_options_make_two_equal() -> None:
    def specs(*attack_options: str) -> list[str]:
        return [entry.spec for entry in choose_entries("full", [], attack_factory(attack_options=list(attack_options)))]

    assert specs() == [entry.spec for entry in SUITES["full"]]  # by default no two of them are equal
    assert set(specs()) - set(specs("lora:rank=32", "dreambooth:snr_gamma=5")) == {
        "lora:rank=32",
        "dreambooth:snr_gamma=5",
    }


def test_textual_inversion_is_not_added_to_itself_in_other_words() -> None:
    factory, other = attack_factory(), "textual_inversion:num_vectors=2"
    for spec, number in (("textual_inversion:num_vectors=1", 1), (other, 2)):
        assert len(with_textual_inversion(choose_entries("quick", [spec], factory), factory)) == number


@pytest.mark.parametrize("kind", ["sd15", "flux2", "zimage"])
def test_textual_inversion_is_added_where_a_text_encoder_can_be_trained(families: Any, kind: str) -> None:
    factory = attack_factory()
    entries = with_textual_inversion(choose_entries("quick", [], factory), factory)
    kept, left_out = available_entries(entries, MODELS, factory, families(kind))
    trains = kind == "sd15"
    assert [entry.spec for entry in kept] == ["dreambooth", "lora", *["textual_inversion"] * trains]
    assert [(gone.spec, gone.required) for gone in left_out] == [("textual_inversion", False)] * (not trains)


@pytest.mark.parametrize(("nominal", "changed"), [("sks", "t@t"), ("t@t", "h@h"), ("ohwx", "t@t")])
def test_the_changed_identifier_is_not_the_nominal_ones(nominal: str, changed: str):
    mine = AttackFactory(AuditConfig(), f"a photo of {nominal} person", "a photo of person")
    specs = [entry.spec for entry in choose_entries("full", [], mine)]
    assert {spec for spec in specs if "identifier" in spec} == {
        f"{a}:identifier={changed}" for a in ("dreambooth", "lora")
    }


def test_attacks_that_need_a_model_that_was_not_given_are_left_out_with_the_reason():
    factory = attack_factory()
    entries, left_out = available_entries(choose_entries("standard", [], factory), ("base", "hardened"), factory)
    assert all(entry.required for entry in left_out)
    assert {entry.spec.partition(":")[0] for entry in left_out} == {"interpolation", "transplant"}
    assert all("--sibling" in entry.reason for entry in left_out)
    assert "interpolation:source=base,alpha=0.5" in [entry.spec for entry in entries]
    (_, (vector,)) = available_entries(
        [Entry(spec="task_vector", required=False)], ("base", "hardened"), attack_factory()
    )
    assert vector.reason.startswith("a sibling model and a hardened_sibling model are needed")
    assert "--sibling and --hardened_sibling" in vector.reason and not vector.required


def test_attacks_on_text_encoders_are_left_out_of_a_model_whose_text_encoder_is_a_language_model(
    families: Callable[[str], Family],
) -> None:
    names = ("base", "hardened", "sibling", "hardened_sibling", "other")
    for suite, more in (("standard", 0), ("full", 2)):
        factory = attack_factory()
        _, left_out = available_entries(choose_entries(suite, [], factory), names, factory, families("flux2"))
        specs = {entry.spec for entry in left_out if "needs a text encoder that can be trained" in entry.reason}
        assert {"dreambooth:train_text_encoder=true", "textual_inversion", "custom_diffusion"} <= specs
        assert len(specs) == 3 + more and not any(entry.required for entry in left_out if entry.spec in specs)


def test_an_attack_of_a_suite_is_left_out_of_a_model_that_it_does_not_fit(families: Callable[[str], Family]) -> None:
    spec = "release_unconditional"
    for name, fits in (("sd15", True), ("flux", False)):
        for suite in ("standard", "full"):
            kept, left_out = available_entries(
                choose_entries(suite, [], attack_factory()), ("base", "hardened"), attack_factory(), families(name)
            )
            found = [entry for entry in kept if entry.spec == spec]
            assert [entry.required for entry in found] == [True] * fits
            reasons = [entry for entry in left_out if entry.spec == spec]
            assert [entry.required for entry in reasons] == [False] * (not fits)
            assert all("flux draws without an empty prompt" in entry.reason for entry in reasons)
    with pytest.raises(UserError, match="flux draws without an empty prompt"):  # where the user asks for it
        check_fits(attack_factory().make(spec, seed=0), families("flux"))


@pytest.mark.parametrize("number", [3, 4])
def test_an_attack_of_a_suite_is_left_out_where_somebody_has_too_few_photos(number: int) -> None:
    photos, spec = torch.zeros(4, 3, 8, 8), "dreambooth:num_photos=4"
    told = {"text": [""] * 4}
    people = [Person("s01", photos, photos, told), Person("s02", photos[:number], photos, told)]
    kept, left_out = available_entries(
        choose_entries("full", [], attack_factory()), MODELS, attack_factory(), subjects=AuditSubjects(people, [])
    )
    assert (spec in [entry.spec for entry in kept]) is (number == 4)
    said = f'"{spec}" takes 4 photos, and s02 has 3 for the attacker; lower num_photos, or give more photos of s02'
    assert left_out == [LeftOut(spec=spec, reason=said, required=False)] * (number == 3)


def test_the_attack_with_captions_of_a_suite_runs_where_there_are_captions() -> None:
    photos, factory = torch.zeros(1, 3, 8, 8), attack_factory()
    told = {CAPTIONED.partition("=")[2]: ["a photo of sks person, smiling"]}
    described, other = Person("s01", photos, photos, told), Person("s02", photos, photos)

    def left_out(suite: str, *people: Person, captions: str | None = None) -> list[LeftOut]:
        entries = choose_entries(suite, [], factory, captions)
        found = available_entries(entries, MODELS, factory, subjects=AuditSubjects(people, []))[1]
        return [entry for entry in found if "caption_column" in entry.spec]

    assert left_out("standard", described, other) == []  # which runs it on the first person
    (full,) = left_out("full", described, other)
    assert "photos of s02 have no captions: write a metadata.jsonl with the column text" in full.reason
    (standard,) = left_out("standard", other, described)
    assert (standard.spec, standard.required) == (CAPTIONED, False) and "--caption_column .txt" in standard.reason
    # A column that the user named must exist, which is checked where captions are read.
    assert left_out("standard", other, captions=".txt") == []
    (named,) = [entry for entry in choose_entries("full", [], factory, ".txt") if "caption_column" in entry.spec]
    assert named == Entry(spec="dreambooth:caption_column=.txt", placebo=True)


def test_an_attack_that_does_not_fit_the_prompts_is_refused_before_anything_is_drawn():
    mine = AttackFactory(AuditConfig(), "a photo of my sks person", "a photo of person")
    with pytest.raises(UserError, match='no identifier in "a photo of my sks person"'):
        available_entries(choose_entries("standard", [], mine), MODELS, mine)
    # Neither attack of this suite needs an identifier.
    available_entries(choose_entries("quick", [], mine), MODELS, mine)


def test_an_audit_too_short_for_the_cost_factor_says_so_and_how_to_mend_it():
    said = cost_factor_warning(AuditConfig(), SUITES["standard"])
    assert said is not None and "audit.max_train_steps = 800 is 1 times" in said and "audit.nominal_step" in said
    assert 'can hardly be "protected"' in said  # the base may get there before the nominal step
    alone = cost_factor_warning(AuditConfig(eval_steps=[800]), SUITES["standard"])
    assert alone is not None and 'cannot be "protected"' in alone
    assert cost_factor_warning(AuditConfig(nominal_step=160), SUITES["standard"]) is None
    assert cost_factor_warning(AuditConfig(min_cost_factor=1), SUITES["standard"]) is None
    assert cost_factor_warning(AuditConfig(), SUITES["quick"]) is None  # which asks for no cost
    assert cost_factor_warning(AuditConfig(), [Entry(spec="dreambooth", long=True, required=False)]) is None


def test_only_attacks_on_the_whole_denoiser_take_the_audits_rate():
    made = {
        spec: attack_factory().make(spec, seed=0).params() for spec in ("dreambooth", "adaptive", "lora", "two_stage")
    }
    assert {spec: params["learning_rate"] for spec, params in made.items()} == {
        "dreambooth": 3e-4,
        "adaptive": 3e-4,
        "lora": 1e-4,
        "two_stage": 3e-4,
    }
    set_apart = attack_factory(attack_options=["lora:learning_rate=0.01,max_train_steps=7"]).make("lora:rank=2", seed=0)
    assert set_apart.params() | {"learning_rate": 0.01, "max_train_steps": 7, "rank": 2} == set_apart.params()


@dataclass(frozen=True)
class OwnAttack:
    """The fields of an attack in a user's file that does not derive from `FineTuning`."""

    max_train_steps: int


def test_an_attack_is_lengthened_by_a_factor_however_deep_it_is():
    assert lengthened(attack_factory().make("dreambooth:steps_factor=2", seed=0), 1.5).max_train_steps == 300
    assert lengthened(attack_factory().make("two_stage:photos=jpeg", seed=0), 1.5).max_train_steps == 150
    assert lengthened(OwnAttack(max_train_steps=20), 1.5) == OwnAttack(max_train_steps=30)
    attack = attack_factory().make("two_stage:attack=adaptive", seed=0)
    inner = [each.innermost for each in (attack, lengthened(attack, 5))]
    assert [each.rate(20) for each in inner] == pytest.approx([inner[0].rate(20)] * 2)


def test_specs_of_the_users_are_all_required_and_none_is_given_twice():
    entries = choose_entries("quick", ["lora", "dreambooth:identifier=t@t"], attack_factory())
    assert [(e.spec, e.required, e.people, e.seeds, e.others) for e in entries] == [
        ("lora", True, None, None, True),
        ("dreambooth:identifier=t@t", True, None, None, False),
    ]
    with pytest.raises(UserError, match="twice"):
        choose_entries("quick", ["lora", "lora"], attack_factory())
    same = ["lora", "dreambooth", "dreambooth:max_train_steps=100"]
    with pytest.raises(UserError, match='the attacks "dreambooth" and "dreambooth:max_train_steps=100" are the same'):
        choose_entries("quick", same, attack_factory())
    assert len(choose_entries("quick", same, attack_factory(attack_options=["dreambooth:max_train_steps=7"]))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--purifiers", "flip"], "purifiers is for protected photos, and none are attacked"),
        (["--photo_attacks", "lora"], "photo_attacks is for protected photos"),
        (["--faceid_adapter", "a.safetensors"], "faceid_adapter is for protected photos"),
        (["--nominal_step", "900"], "nominal_step = 900 is past the attack's end at max_train_steps = 800"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words: list[str], said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        job(tmp_path, *words)
    if "nominal_step" not in words[0]:
        assert job(tmp_path, *words, "--protected_photos", "photos").protected_photos == "photos"


# -- people and models ---------------------------------------------------------------------------------------


def job(folder: Path, *words: str) -> AuditJobConfig:
    required = ["--base", "b", "--hardened", "h", "--output_dir", "o", "--subjects", str(folder)]
    return load_config(AuditJobConfig, [*required, *words])


def test_one_folder_holds_all_and_each_part_can_be_named_apart(tmp_path: Path):
    write_subjects(tmp_path / "all", protected=2, others=1, consenting=1, strangers=3)
    config = job(tmp_path / "all")
    people = PhotoFolders.below(config.subjects, config).load(32)
    assert [person.id for person in people.protected] == ["s01", "s02"]
    assert [person.id for person in people.others] == ["o01"]
    assert people.strangers is not None and people.consenting is not None
    assert people.strangers.shape == (3, 3, 32, 32) and people.consenting.shape == (4, 3, 32, 32)
    assert people.protected[0].photos.shape == (4, 3, 32, 32) and people.protected[0].references.shape[0] == 12

    config = job(tmp_path / "all/attacker", "--holdout_data_dir", str(tmp_path / "all/holdout"))
    plain = PhotoFolders.below(config.subjects, config).load(32)
    assert [person.id for person in plain.protected] == ["s01", "s02"]
    assert plain.others == [] and plain.strangers is None and plain.held_out_from == "folder"


def test_without_hold_out_photos_the_last_third_is_held_out_from_the_attacker(tmp_path: Path):
    for number, count, folder in ((1, 4, "s01"), (2, 9, "s02"), (3, 6, "other/o01")):
        write_photos(number, range(count), tmp_path / folder, size=32)
    config = job(tmp_path)
    found = PhotoFolders.below(config.subjects, config).load(32)
    check_separate(found.sets)
    assert (found.counts.attacked, found.counts.held_out) == ({"s01": 2, "s02": 6}, {"s01": 2, "s02": 3})
    assert found.counts.held_out_from == "originals"
    whole = load_images(sorted((tmp_path / "s02").iterdir()), 32)
    assert torch.equal(torch.cat([found.protected[1].photos, found.protected[1].references]), whole)
    assert [len(found.others[0].photos), len(found.others[0].references)] == [4, 2]
    (tmp_path / "s01/003.png").unlink()
    said = "has 3 photos of s01, too few to hold some out for the audit: give at least 4, .* in audit.holdout_data_dir"
    with pytest.raises(UserError, match=said):
        PhotoFolders.below(config.subjects, config).load(32, prefix="audit.")


def test_the_attackers_people_may_lie_beside_the_other_groups_and_strangers_in_folders(tmp_path: Path):
    write_subjects(tmp_path, protected=1, others=1, consenting=1, strangers=3)
    for person in sorted((tmp_path / "attacker").iterdir()):
        person.rename(tmp_path / person.name)
    (tmp_path / "attacker").rmdir()
    for photo in sorted((tmp_path / "strangers").iterdir())[1:]:
        (tmp_path / "strangers" / photo.stem).mkdir()
        photo.rename(tmp_path / "strangers" / photo.stem / photo.name)
    (tmp_path / "__MACOSX/s01").mkdir(parents=True)
    people = PhotoFolders.below(str(tmp_path), job(tmp_path)).load(32)
    assert [person.id for person in people.protected] == ["s01"]
    assert people.strangers is not None and len(people.strangers) == 3


@pytest.mark.parametrize("loose", ["attacker", "holdout", "other"])
def test_loose_photos_are_not_blamed_on_an_id_that_nobody_gave(tmp_path: Path, loose: str):
    write_subjects(tmp_path, protected=1, others=1, consenting=0, strangers=1)
    for group in ("attacker", "holdout"):
        (tmp_path / group / "s01").rename(tmp_path / group / "ann")
    for folder in sorted((tmp_path / loose).iterdir()):
        for photo in sorted(folder.iterdir()):
            photo.replace(tmp_path / loose / photo.name)
        folder.rmdir()
    with pytest.raises(UserError, match=f"loose photos in .*/{loose} .* move them into .*/{loose}/<id>/") as error:
        PhotoFolders.below(str(tmp_path), job(tmp_path)).load(32)
    assert "s01" not in str(error.value)


def test_models_are_the_same_where_all_weights_are_and_comparable_where_all_sizes_are(
    family: Family, make_pipeline: Any
):
    assert is_same(family, load_family(family.source or ""))
    other = copy.deepcopy(family.denoiser)
    other.conv_out.bias.data[0] += 1e-6
    changed = family.with_denoiser(other)
    assert not is_same(family, changed)
    check_comparable(family, changed, "a", "b")
    velocity = load_family(make_pipeline("v_prediction"))
    with pytest.raises(UserError, match="predicts v_prediction"):
        check_comparable(family, velocity, "a", "b")


# -- attention maps ------------------------------------------------------------------------------------------


def test_there_are_no_maps_of_a_prompt_without_an_identifier(family: Family):
    assert identifier_maps(family, torch.rand(1, 3, 16, 16), "a photo of person", "a photo of person") is None


def test_maps_are_pictures_of_the_same_size_and_repeat(family: Family):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = identifier_maps(family, images, "a photo of sks person", "a photo of person")
    assert maps is not None and maps.shape == images.shape and maps.min() >= 0 and maps.max() <= 1
    assert maps.amax((1, 2, 3)).min() == 1  # each is stretched to its own range
    again = identifier_maps(family, images, "a photo of sks person", "a photo of person")
    assert again is not None and torch.equal(maps, again)
    assert not torch.equal(maps[0], maps[1])
