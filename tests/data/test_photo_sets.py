"""Anti-DreamBooth's layout: every person's photos in set_A, set_B and set_C."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apdm.audit.inputs.people import PhotoFolders
from apdm.cli import main
from apdm.config import AuditJobConfig, HardenConfig, load_config
from apdm.core.errors import UserError
from apdm.data.photo_sets import Chosen, has_sets
from apdm.data.separate_photos import Role, check_separate
from apdm.data.subjects import find_subjects, load_images
from apdm.image_layer.memory import PhotoMemory
from apdm.image_layer.photos import check_photos
from apdm.jobs.planning.texts import sets_text

REQUIRED = {"base": "b", "hardened": "h", "output_dir": "o"}


def photo(file: Path) -> Path:
    """A picture of noise that differs from that of any other path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(str(file).encode()))
    Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    return file


def person(folder: Path, sets: str = "ABC", spelling: str = "set_{}") -> Path:
    for letter in sets:
        for name in ("1.png", "2.png"):
            photo(folder / spelling.format(letter) / name)
    return folder


def audit_config(folder: Path, **changes: str) -> AuditJobConfig:
    options = {**REQUIRED, "subjects": str(folder), **changes}
    return load_config(AuditJobConfig, [word for key, value in options.items() for word in (f"--{key}", value)])


def load(config: AuditJobConfig):
    folders = PhotoFolders.below(config.subjects, config)
    return folders.load(16, attacker_set=config.attacker_set, holdout_set=config.holdout_set)


@pytest.mark.parametrize("spelling", ["set_{}", "SET_{}", "Set{}", "set-{}"])
def test_one_set_is_read_and_the_others_are_left_alone(spelling, tmp_path):
    for name in ("n1", "n2"):
        person(tmp_path / name, spelling=spelling)
    assert has_sets(tmp_path)
    for letter in "ABC":
        found = find_subjects(tmp_path, chosen=Chosen(letter))
        assert [one.id for one in found] == ["n1", "n2"]
        assert [file.parent.name for file in found[0].images] == [spelling.format(letter)] * 2


def test_small_letters_do(tmp_path):
    for letter in "abc":
        photo(tmp_path / f"n1/set_{letter}/1.png")
    assert find_subjects(tmp_path)[0].images == [tmp_path / "n1/set_a/1.png"]


def test_a_folder_of_sets_is_one_person_and_not_three(tmp_path):
    person(tmp_path)
    (only,) = find_subjects(tmp_path)
    assert (only.id, only.named, only.images[0].parent.name) == ("s01", False, "set_A")


def test_a_set_may_have_safe_partners(tmp_path):
    person(tmp_path / "n1")
    for name in ("1.png", "2.png"):
        photo(tmp_path / "n1/set_A/safe" / name)
    assert find_subjects(tmp_path)[0].safe == [tmp_path / "n1/set_A/safe" / name for name in ("1.png", "2.png")]


@pytest.mark.parametrize(
    ("files", "chosen", "said"),
    [
        (["n1/set_A/1.png", "n1/set_C/1.png"], "B", 'subject "n1" has no photos in set_B, only in set_A, set_C; .*'),
        (["n1/set_A/1.png", "n1/2.png"], "A", 'subject "n1" has loose photos .n1/2.png. beside its sets'),
        (["n1/set_A/1.png", "n1/more/2.png"], "A", 'photos in the inner folder "more"'),
        (["n1/set_A/1.png", "n1/safe/1.png"], "A", 'photos in the inner folder "safe"'),
        (["n1/set_A/1.png", "n1/set_B/x/2.png"], "B", 'set_B, has photos in the inner folder "x"'),
        (["n1/set_A/1.png", "n2/1.png"], "A", "mixes two layouts: the photos of n1 lie in sets, those of n2 do not"),
        (["n1/set_A/1.png", "n1/set_a/2.png"], "A", "are both set A"),
        (["set_A/1.png", "2.png"], "A", "has loose photos .*2.png. beside its sets"),
        (["set_A/1.png", "n1/2.png"], "A", 'photos in the inner folder "n1"'),
    ],
)
def test_what_is_not_clear_is_refused(files, chosen, said, tmp_path):
    for name in files:
        photo(tmp_path / name)
    with pytest.raises(UserError, match=said):
        find_subjects(tmp_path, chosen=Chosen(chosen))


def test_a_damaged_photo_in_a_set_is_named_with_its_person(tmp_path):
    person(tmp_path / "n1")
    (tmp_path / "n1/set_A/1.png").write_bytes(b"")
    with pytest.raises(UserError, match="^n1/set_A/1.png is empty"):
        load_images(find_subjects(tmp_path)[0].images, 16)


def test_the_folder_that_was_hardened_can_be_audited_and_no_photo_is_used_twice(tmp_path):
    people = [person(tmp_path / name) for name in ("n1", "n2")]
    subjects = load(audit_config(tmp_path))
    files = {each.role: set(each.files) for each in subjects.sets}
    assert files[Role.PROTECTED] == {folder / f"set_B/{name}.png" for folder in people for name in (1, 2)}
    assert files[Role.REFERENCE] == {folder / f"set_C/{name}.png" for folder in people for name in (1, 2)}
    trained = {file for one in find_subjects(tmp_path) for file in one.images}
    assert not trained & set.union(*files.values())
    check_separate(subjects.sets)


def test_the_papers_matched_attack_can_be_chosen(tmp_path):
    person(tmp_path / "n1")
    subjects = load(audit_config(tmp_path, attacker_set="A", holdout_set="B"))
    (trained,) = [each.files for each in subjects.sets if each.role is Role.PROTECTED]
    assert {file.parent.name for file in trained} == {"set_A"}


def test_people_are_called_by_their_ids_and_not_by_their_sets(tmp_path):
    for name in ("n1", "n2"):
        person(tmp_path / name)
    assert [found.ids for found in load(audit_config(tmp_path)).sets] == [["n1", "n2"]] * 2
    photos = check_photos(find_subjects(tmp_path)[0], "png")
    assert PhotoMemory.of(photos, 64, momentum=False, batch_size=1).folder == "n1/set_A"


def test_the_plan_tells_only_of_sets_that_are_used(tmp_path):
    person(tmp_path / "n1")
    attacking = audit_config(tmp_path)
    assert sets_text(str(tmp_path), None, attacking) == (
        "the attacker has set_B, set_C is held out; other sets are not read"
    )
    elsewhere = audit_config(tmp_path, attack_data_dir="x", holdout_data_dir="y")
    assert sets_text(str(tmp_path), None, elsewhere) is None


def test_people_who_must_stay_learnable_may_lie_in_sets_too(tmp_path):
    person(tmp_path / "n1")
    person(tmp_path / "other/o1")
    subjects = load(audit_config(tmp_path))
    assert [one.id for one in subjects.others] == ["o1"]
    assert {each.role: each.files[0].parent.name for each in subjects.sets if "other" in each.role.name.lower()} == {
        Role.OTHER: "set_B",
        Role.OTHER_REFERENCE: "set_C",
    }


def test_a_set_with_two_uses_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="attacker_set and holdout_set are both C"):
        audit_config(tmp_path, attacker_set="C")
    with pytest.raises(UserError, match="protected_set and holdout_set are both A"):
        audit_config(tmp_path, holdout_set="A")
    required = ["--pretrained_model_name_or_path", "m", "--instance_data_dir", "i", "--output_dir", "o"]
    hardening = [*required, "--protected_set", "C"]
    assert load_config(HardenConfig, hardening).protected_set == "C"
    with pytest.raises(UserError, match=r"protected_set and audit.holdout_set are both C.* audit.holdout_data_dir"):
        load_config(HardenConfig, [*hardening, "--audit.enabled", "true"])


def test_equal_letters_are_no_fault_where_nobody_trains_on_what_is_held_out(tmp_path):
    person(tmp_path / "people/n1", "A")
    person(tmp_path / "separate/n1", "A")
    options = {"protected_set": "A", "attacker_set": "A", "holdout_set": "A"}
    subjects = load(audit_config(tmp_path / "people", **options, holdout_data_dir=str(tmp_path / "separate")))
    check_separate(subjects.sets)
    assert {each.role: Path(each.folder).name for each in subjects.sets} == {
        Role.PROTECTED: "people",
        Role.REFERENCE: "separate",
    }
    with pytest.raises(UserError, match="are both A"):
        audit_config(tmp_path, **options, holdout_data_dir="x", attack_data_dir="x")
    # An audit of photos alone attacks with the protected photos, and never reads the attacker's set.
    alone = ["--base", "b", "--protected_photos", "p", "--photos", "o", "--output_dir", "out"]
    assert load_config(AuditJobConfig, [*alone, "--holdout_set", "B"]).holdout_set == "B"
    with pytest.raises(UserError, match="protected_set and holdout_set are both A"):
        load_config(AuditJobConfig, [*alone, "--holdout_set", "A"])


def test_missing_hold_out_photos_are_told_with_the_option_that_chooses_them(tmp_path):
    person(tmp_path / "n1", "AB")
    with pytest.raises(UserError, match=r"no photos in set_C, only in set_A, set_B; .* --holdout_set"):
        load(audit_config(tmp_path))


def test_protecting_photos_takes_one_set_and_says_so(tiny_pipeline, tmp_path, capsys):
    person(tmp_path / "people/n1")
    options = {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": tmp_path / "people",
        "protected_set": "B",
        "output_dir": tmp_path / "out",
        "resolution": 16,
        "image_layer.method": "noise",
        "image_layer.zero_shot.enabled": "false",
    }
    assert main(["perturb", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]) == 0
    assert "set_B is protected; other sets are not read" in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "out/images/n1").iterdir()) == ["1.png", "2.png"]
    names = "people/n1/set_B/1.png", "out/images/n1/1.png"
    original, made = (np.asarray(Image.open(tmp_path / name)) for name in names)
    assert 0 < abs(original.astype(int) - made).max() <= 7


def test_without_sets_the_last_third_by_name_can_be_left_out_or_taken_alone(tmp_path):
    for name in "cabdefg":  # in no order
        photo(tmp_path / f"n1/{name}.png")
    kept, held = (find_subjects(tmp_path, chosen=Chosen(part=part))[0].images for part in ("kept", "held out"))
    assert ["".join(file.stem for file in files) for files in (kept, held)] == ["abcde", "fg"]
    person(tmp_path / "sets/n1")  # of sets, the chosen one is taken whole
    assert len(find_subjects(tmp_path / "sets", chosen=Chosen(part="kept"))[0].images) == 2
    (only,) = find_subjects(tmp_path / "n1", chosen=Chosen(part="held out"))
    assert (only.named, len(only.images)) == (False, 2)


@pytest.mark.parametrize(("number", "held"), [(4, 2), (6, 2), (8, 2), (9, 3), (11, 3), (12, 4)])
def test_a_third_is_held_out_and_never_less_than_two_of_at_least_four(number: int, held: int):
    photos = [Path(f"{index:02d}.png") for index in range(number)]
    kept, out = (photos[Chosen(part=part).of(photos, folder="people", subject="n1")] for part in ("kept", "held out"))
    assert len(out) == held and [*kept, *out] == photos
    with pytest.raises(UserError, match="people has 3 photos of n1, too few .* at least 4, or .* holdout_data_dir"):
        Chosen(part="kept").of(photos[:3], folder="people", subject="n1")
    assert Chosen().of(photos[:1], folder="people", subject="n1") == slice(None)


def test_a_folder_that_is_not_there_has_no_sets(tmp_path):
    assert not has_sets(None) and not has_sets(tmp_path / "nowhere")
