"""Photos from Hugging Face datasets: local ones of every kind, read without the network."""

import hashlib
import io
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import OPTIONS

from apdm.cli import main
from apdm.config import HardenConfig, PerturbConfig, load_config, to_yaml
from apdm.core.errors import UserError
from apdm.core.opaque_ids import opaque_id
from apdm.data.dataset_photos import DatasetSource, photos_on_disk, write_photos
from apdm.data.subjects import find_subjects

ANNA = "p" + hashlib.sha256(b"Anna Maier").hexdigest()[:10]
NAMES = ["Anna Maier", "Anna Maier", "n000050", "Anna Maier", "n000050"]


def encoded(number: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = [encoded(number, "PNG" if number == 2 else "JPEG") for number in range(len(NAMES))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same five photos of two people as an imagefolder, a parquet file, a tar file and a saved dataset."""
    import datasets

    root = tmp_path_factory.mktemp("datasets")
    for number, (name, picture) in enumerate(zip(NAMES, PICTURES, strict=True)):
        file = root / f"folder/train/{name}/{number}.{'png' if number == 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
    data = datasets.Dataset.from_dict(
        {"photo": [{"bytes": picture, "path": None} for picture in PICTURES], "who": NAMES, "number": range(5)},
        features=datasets.Features(
            {"photo": datasets.Image(), "who": datasets.Value("string"), "number": datasets.Value("int64")}
        ),
    )
    data.to_parquet(str(root / "photos.parquet"))
    data.save_to_disk(str(root / "saved"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(root / "splits"))
    with tarfile.open(root / "photos.tar", "w") as archive:
        for number, (name, picture) in enumerate(zip(NAMES, PICTURES, strict=True)):
            for suffix, content in (("jpg", picture), ("who.txt", name.encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root


SOURCES = {
    "folder": {"subject_column": "label"},
    "photos.parquet": {"image_column": "photo", "subject_column": "who"},
    "saved": {"image_column": "photo", "subject_column": "who"},
    "splits": {"image_column": "photo", "subject_column": "who", "split": "test"},
    "photos.tar": {"image_column": "jpg", "subject_column": "who.txt"},
}


def source(made: Path, kind: str, **changes: object) -> DatasetSource:
    options = {"option": "dataset_name", "name": str(made / kind), **SOURCES[kind], **changes}
    return DatasetSource(**options)


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_dataset_gives_the_files_that_it_holds_under_opaque_ids(made, name, tmp_path, capfd):
    write_photos(source(made, name), tmp_path)
    found = find_subjects(tmp_path)
    assert [one.id for one in found] == ["n000050", ANNA]
    written = {one.id: {file.read_bytes() for file in one.images} for one in found}
    expected = {ANNA: {PICTURES[0], PICTURES[1], PICTURES[3]}, "n000050": {PICTURES[2], PICTURES[4]}}
    assert written == expected
    assert sorted(file.suffix for file in found[0].images) == [".jpg", ".png"]
    assert capfd.readouterr() == ("", "")  # no progress bars


def test_only_the_chosen_subjects_are_taken(made, tmp_path):
    write_photos(source(made, "saved", subjects=["n000050"]), tmp_path / "named")
    write_photos(source(made, "saved", max_subjects=1), tmp_path / "first")
    assert [(one.id, len(one.images)) for one in find_subjects(tmp_path / "named")] == [("n000050", 2)]
    assert [(one.id, len(one.images)) for one in find_subjects(tmp_path / "first")] == [(ANNA, 3)]
    assert [file.name for file in find_subjects(tmp_path / "named")[0].images] == [
        "000002.png",
        "000004.jpg",
    ]  # the rows


def test_whole_numbers_are_ids(made, tmp_path):
    write_photos(source(made, "saved", subject_column="number"), tmp_path)
    assert [one.id for one in find_subjects(tmp_path)] == list("01234")


def test_without_a_subject_column_all_photos_are_one_persons(made, tmp_path, caplog):
    write_photos(source(made, "folder", subject_column=None), tmp_path)
    (only,) = find_subjects(tmp_path)
    assert (only.id, len(only.images)) == ("s01", 5)
    assert "if its column label says who is who, give --subject_column label" in caplog.text


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("saved", {"split": "nope", "name": "splits"}, "has no split nope, only test"),
        ("folder", {"split": "nope"}, "cannot be read: Bad split: nope. Available splits: .*train.*; check"),
        ("saved", {"image_column": "image"}, "has no column image, only photo, who, number; .* --image_column"),
        ("saved", {"subject_column": "name"}, "has no column name, only photo, who, number; .* --subject_column"),
        ("saved", {"image_column": "who"}, "row 0 of dataset .* has no picture in the column who"),
        ("saved", {"subjects": ["Bert"]}, "has no photos of Bert in the column who, which is number 1 of"),
        ("saved", {"name": "photos.zip"}, "photos.zip is no .parquet, .arrow, .tar file"),
        ("folder", {"config_name": "nope"}, "cannot be read: .*nope"),
    ],
)
def test_what_cannot_be_used_is_one_line(made, name, changes, said, tmp_path):
    (made / "photos.zip").touch()
    options = dict(changes)
    if "name" in options:
        options["name"] = str(made / options["name"])
    with pytest.raises(UserError, match=said) as caught:
        write_photos(source(made, name, **options), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "second", "names", "said"),
    [
        ("string", b"no picture", ["a1", "a1"], "row 1 of dataset .* holds no picture"),
        ("string", PICTURES[1], ["a1", None], "row 1 of dataset .* has no subject"),
        ("string", PICTURES[1], ["a1", " "], "row 1 of dataset .* has no subject"),
        ("bool", PICTURES[1], [True, True], "row 0 of dataset .* has no subject"),
    ],
)
def test_a_damaged_picture_and_a_row_without_subject_are_named(tmp_path, kind, second, names, said):
    import datasets

    pictures = [{"bytes": content, "path": None} for content in (PICTURES[0], second)]
    features = datasets.Features({"image": datasets.Image(), "who": datasets.Value(kind)})
    data = datasets.Dataset.from_dict({"image": pictures, "who": names}, features=features)
    data.save_to_disk(str(tmp_path / "data"))
    broken = DatasetSource(option="dataset_name", name=str(tmp_path / "data"), subject_column="who")
    with pytest.raises(UserError, match=said):
        write_photos(broken, tmp_path / "out")


def test_a_dataset_on_the_hub_may_not_name_a_file_of_this_machine_and_a_local_one_may(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(PICTURES[0])
    row = {"bytes": None, "path": str(tmp_path / "secret.jpg")}
    with pytest.raises(UserError, match="row 0 of dataset owner/faces names a file of this machine"):
        DatasetSource(option="dataset_name", name="owner/faces")._picture(row, 0)
    assert DatasetSource(option="dataset_name", name=str(tmp_path))._picture(row, 0) == PICTURES[0]


@pytest.mark.parametrize("name", ["data.parquet", "saved"])
def test_a_split_without_photos_is_told(tmp_path, name):
    import datasets

    empty = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    empty.to_parquet(str(tmp_path / "data.parquet"))
    empty.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=f"dataset .*/{name} has no photos in its split train; choose another"):
        write_photos(DatasetSource(option="dataset_name", name=str(tmp_path / name)), tmp_path / "out")


def test_what_is_wrong_with_a_dataset_on_the_hub_is_told_with_a_mend_of_its_own():
    from datasets.exceptions import DatasetNotFoundError

    given = DatasetSource(option="class_dataset_name", name="owner/faces")
    for error, mend in (
        (ConnectionError(), "connect to the Hub, or give class_dataset_name a local folder"),
        (DatasetNotFoundError(), "check the name; for a private or gated dataset, log in with hf auth login"),
        (ValueError(), "check class_dataset_name and the options that belong to it"),
    ):
        assert given._mend(error) == mend


@pytest.mark.parametrize("name", ["Anna Maier", "anna", "anna_1998_berlin", "maier@example.org", "+49 170 123456"])
def test_names_do_not_become_ids(name):
    assert name not in opaque_id(name) and opaque_id(name) == opaque_id(name)


@pytest.mark.parametrize("name", ["7", "0007", "s01", "n000050", "id_12", "3f2a9c4e1b7d"])
def test_what_is_opaque_stays(name):
    assert opaque_id(name) == name


def test_photos_are_gone_after_the_run_however_it_ends_and_strange_folders_are_never_touched(made, tmp_path):
    place, sources = tmp_path / "run.photos", {"people": source(made, "saved")}
    (place / "people/s09").mkdir(parents=True)  # of a run that was killed
    (place / "people/s09/0.jpg").write_bytes(PICTURES[0])
    (place / ".made_by_apdm").touch()
    with photos_on_disk(place, sources):
        assert len(find_subjects(place / "people")) == 2
        with pytest.raises(UserError, match="another run has its photos"), photos_on_disk(place, sources):
            pass
        assert len(find_subjects(place / "people")) == 2
    assert not place.exists()
    with pytest.raises(ValueError, match="stopped"), photos_on_disk(place, sources):
        raise ValueError("stopped")
    assert not place.exists()
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not from this program"), photos_on_disk(place, sources):
        pass
    assert (place / "thesis.txt").exists()


def perturb(made: Path, pipeline: Path, output: Path, **changes: object) -> int:
    options = {
        "pretrained_model_name_or_path": pipeline,
        "dataset_name": made / "photos.parquet",
        "image_column": "photo",
        "subject_column": "who",
        "output_dir": output,
        "resolution": 16,
        "image_layer.method": "noise",
        "image_layer.zero_shot.enabled": "false",
        **changes,
    }
    return main(["perturb", *(word for key, value in options.items() for word in (f"--{key}", str(value)))])


def test_photos_of_a_dataset_are_protected_and_no_original_is_left(made, tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "out"
    assert perturb(made, tiny_pipeline, output) == 0
    said = capsys.readouterr()
    assert f"5 photos in dataset {made}/photos.parquet, split train" in said.err
    assert sorted(str(file.relative_to(output / "images")) for file in (output / "images").rglob("*.png")) == [
        "n000050/000002.png",
        "n000050/000004.png",
        *(f"{ANNA}/00000{row}.png" for row in (0, 1, 3)),
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert "Anna" not in said.out + said.err
    text = (output / "config.yaml").read_text()
    assert "Anna" not in text and to_yaml(load_config(PerturbConfig, ["--config", str(output / "config.yaml")])) == text


def test_the_names_of_the_chosen_subjects_stand_in_no_file_and_their_ids_choose_the_same(made, tiny_pipeline, tmp_path):
    decomposed = unicodedata.normalize("NFD", "Anna Maier")
    assert perturb(made, tiny_pipeline, tmp_path / "out", dataset_subjects=decomposed) == 0
    text = (tmp_path / "out/config.yaml").read_text()
    assert f"dataset_subjects:\n- {ANNA}\n" in text
    for file in (file for file in (tmp_path / "out").rglob("*") if file.suffix in (".yaml", ".json")):
        assert "Maier" not in file.read_text()
    again = ["--config", str(tmp_path / "out/config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(["perturb", *again]) == 0
    assert [path.name for path in (tmp_path / "again/images").iterdir()] == [ANNA]
    assert opaque_id(ANNA) == ANNA


def test_mistakes_are_told_before_the_model_is_loaded_and_nothing_is_left(made, tmp_path, capsys):
    for changes, said in (
        ({"subject_column": "name"}, "has no column name"),
        ({"dataset_name": "./nowhere"}, "./nowhere does not exist"),
        ({"instance_data_dir": made}, "dataset_name and instance_data_dir are both given"),
    ):
        # The folder of the model is empty, which would be told if it were looked at first.
        assert perturb(made, "absent/model", tmp_path / "out", **changes) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        assert not any(tmp_path.iterdir())


def test_options_of_a_dataset_need_a_dataset():
    required = ["--pretrained_model_name_or_path", "m", "--output_dir", "o"]
    for words, said in (
        ([], "instance_data_dir must be given, the folder of the photos; or dataset_name"),
        (["--instance_data_dir", "i", "--subject_column", "who"], "subject_column belongs to a dataset"),
        (["--dataset_name", "a/b", "--max_subjects", "3"], "max_subjects needs subject_column"),
        (["--dataset_name", "a/b", "--class_dataset_name", "c", "--class_data_dir", "d"], "are both given"),
        (["--dataset_name", "a/b", "--pairs", "folder"], "pairs is folder, and a dataset has no partners"),
        (["--dataset_name", "a/b", "--variety.caption_column", "text"], "caption_column reads captions beside photos"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(HardenConfig, [*required, *words])
    config = load_config(HardenConfig, [*required, "--dataset_name", "a/b", "--class_dataset_name", "c/d"])
    assert (config.instance_data_dir, config.class_data_dir) == ("o.photos/people", "o.photos/class")


def test_a_model_is_hardened_with_photos_and_class_pictures_of_datasets(made, tiny_pipeline, tmp_path, capsys):
    options = OPTIONS | {
        "pretrained_model_name_or_path": tiny_pipeline,
        "dataset_name": made / "folder",
        "subject_column": "label",
        "max_subjects": 1,
        "class_dataset_name": made / "photos.parquet",
        "class_image_column": "photo",
        "num_class_images": 2,
        "output_dir": tmp_path / "out",
        "max_train_steps": 1,
    }
    # The people are among the class pictures here, which is refused as it is with folders.
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["harden", *words]) == 2
    assert "are the same photo, but the model is trained to go on drawing the class" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    others = tmp_path / "others"
    for number in (7, 8, 9):
        others.mkdir(exist_ok=True)
        (others / f"{number}.jpg").write_bytes(encoded(number))
    assert main(["harden", *words, "--class_dataset_name", str(others), "--class_image_column", "image"]) == 0
    said = capsys.readouterr().err
    assert f"1 ({ANNA})" in said and "2 pictures of your own" in said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["others", "out"]
    assert main(["verify", str(tmp_path / "out"), "--subjects", str(made / "folder/train")]) == 0
