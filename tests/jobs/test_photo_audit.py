"""`apdm audit` of protected photos without a hardened model, on the miniature world and as short as can be."""

from __future__ import annotations

import json
import logging
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from html_page import Page
from json_schema import violations
from PIL import Image
from tiny_judges import write_dino
from transformers import ViTModel

from apdm.audit import PhotoResults, read_model_results, read_results, results_schema
from apdm.audit.inputs.protected_photos import hold_out, load_protected_photos
from apdm.cli import main
from apdm.config import AuditJobConfig, load_config
from apdm.core.errors import UserError
from apdm.portraits import ADAPTER, PIPELINE
from apdm.portraits.subjects import write_photos
from apdm.report.photo_page import write_photo_report

PROMPT = "a photo of t@t person"
SHORT = {"max_train_steps": 2, "num_class_images": 4, "num_images": 1, "num_inference_steps": 2, "num_threads": 1}
LONGER = SHORT | {"seeds": 2, "purifiers": "flip", "faceid_adapter": ADAPTER, "show_photos": "true"}


def run(command: str, **options: Any) -> int:
    """Run a command in this process, with the number of threads that it had before."""
    words = []
    for key, value in options.items():
        if value is not None:
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    threads = torch.get_num_threads()
    try:
        return main([command, *words])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, with five and six photos."""
    folder = tmp_path_factory.mktemp("people")
    for number, count in ((1, 5), (2, 6)):
        write_photos(number, range(count), folder / f"s{number:02d}")
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of four other people, because pictures after so few steps show no face."""
    folder = tmp_path_factory.mktemp("strangers")
    for number in range(4):
        write_photos(500 + number, range(1), folder / f"p{number}")
    return folder


@pytest.fixture(scope="module")
def run_folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `apdm perturb`."""
    output = tmp_path_factory.mktemp("runs") / "protected"
    layer = {"image_layer.method": "noise", "image_layer.zero_shot.enabled": "false"}
    given = {"pretrained_model_name_or_path": PIPELINE, "instance_data_dir": photos, "output_dir": output}
    prompts = {"instance_prompt": PROMPT, "class_prompt": "a photo of a person", "resolution": 64}
    assert run("perturb", num_threads=1, **given, **prompts, **layer) == 0
    return output


@pytest.fixture(scope="module")
def by_another_tool(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Darker copies of the photos, in a folder that says nothing else. One of them is smaller."""
    folder = tmp_path_factory.mktemp("other") / "darker"
    for path in sorted(photos.glob("*/*.png")):
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        darker = Image.open(path).convert("RGB").point([round(0.9 * level) for level in range(256)] * 3)
        (darker.resize((48, 48)) if path.name == "000.png" else darker).save(target)
    return folder


@pytest.fixture(scope="module")
def audited(
    photos: Path, run_folder: Path, strangers: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The output folder of an audit for which nothing is given but the folders, and what it logged."""
    output = tmp_path_factory.mktemp("audits") / "photos"
    options = LONGER | {"strangers_data_dir": strangers}
    said = StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("apdm").addHandler(handler)
    try:
        code = run("audit", protected_photos=run_folder, photos=photos, output_dir=output, **options)
    finally:
        logging.getLogger("apdm").removeHandler(handler)
    assert code == 1  # the attack is far too short to work with clean photos
    return output, said.getvalue()


def test_the_plan_says_so_if_the_photos_misled_every_judge(
    audited: tuple[Path, str], run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judges = json.loads((audited[0] / "results.json").read_text())["judges"]["encoders"]
    made = Path(shutil.copytree(run_folder, tmp_path / "made"))
    note = json.loads((made / "perturbation.json").read_text())
    for misled, said in ((judges, True), (judges[:1], False)):
        (made / "perturbation.json").write_text(json.dumps(note | {"misled": misled}))
        words = ["--protected_photos", str(made), "--photos", str(photos), "--output_dir", str(tmp_path / "out")]
        assert main(["audit", *words, "--dry_run"]) == 0
        assert ("the zero-shot layer misled every encoder that judges" in capsys.readouterr().err) is said


def test_photos_are_audited_without_a_hardened_model(audited: tuple[Path, str]):
    output, _ = audited
    results = read_results(output / "results.json")
    assert isinstance(results, PhotoResults) and results.kind == "photos"
    assert list(results.models) == ["base"] and results.subjects == ["s01", "s02"]
    assert results.prompts.asked == [PROMPT, "a portrait of t@t person"]
    kinds = [("clean", None), ("protected", None), ("protected", "flip")]
    assert [(row.subject, row.attack, row.photos, row.purifier, row.seed) for row in results.image_layer.attacks] == [
        (subject, attack, *kind, seed)
        for subject in ("s01", "s02")
        for attack in ("dreambooth", "faceid")
        for kind in kinds
        for seed in (0, 1)
    ]
    assert {row.error for row in results.image_layer.attacks} == {None}
    assert not results.verdict.protected and any("too weak" in reason for reason in results.verdict.unreliable)
    assert "the match rate rests on 4 pictures" in results.verdict.unreliable[0]  # two prompts, two seeds
    outcomes = results.image_layer.by_attack or []
    assert [(one.spec, one.state) for one in outcomes][0] == ("dreambooth", "void")
    assert [one.cells for one in outcomes] == [4, 4, 4, 4]
    assert set(outcomes[0].quality) >= {"face_rate", "similarity", "brisque"}
    interval = outcomes[0].comparison["portrait-b"].difference_interval
    assert interval is not None and interval[0] <= interval[1]  # over two people


def test_few_strangers_are_told_before_the_attacks(
    audited: tuple[Path, str], photos: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four photos of strangers, or class pictures, which have at most as many faces."""
    assert "the audit will be unreliable: likeness by chance rests on 4 photos" in audited[1]
    given = {"protected_photos": run_folder, "photos": photos, "output_dir": tmp_path / "out", "dry_run": "true"}
    for number, said in ((4, True), (10, False)):
        assert run("audit", **given, **{**SHORT, "num_class_images": number}) == 0
        assert (f"likeness by chance rests on {number} class pictures" in capsys.readouterr().err) is said


def test_a_base_that_draws_no_face_is_refused_before_the_attacks_unless_there_are_strangers(
    photos: Path,
    run_folder: Path,
    tiny_pipeline: Path,
    strangers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    words = {"base": tiny_pipeline, "protected_photos": run_folder, "photos": photos, "output_dir": output}
    assert run("audit", **words, **SHORT) == 2
    said = capsys.readouterr().err
    assert "the base draws no face for the class prompt: give photos in strangers_data_dir" in said
    assert "sees a face in 0 of the base's 4 class pictures" in said and not list(output.glob("photo_cells/*"))
    # What the message asks for is taken in the same folder: there is no result in it that could be lost.
    assert run("audit", **words, **SHORT, strangers_data_dir=strangers, dry_run="true") == 0


def test_the_last_third_of_the_originals_is_held_out_and_the_audit_says_so(audited: tuple[Path, str]):
    output, said = audited
    results = read_results(output / "results.json")
    assert isinstance(results, PhotoResults)
    assert results.photos.attacked == {"s01": 3, "s02": 4} and results.photos.held_out == {"s01": 2, "s02": 2}
    assert "4 held out from both arms: the last third of each person's photos by name" in said
    assert "the last third of each person's originals" in Page(output / "report.html").text("verdict")


def test_the_plan_says_what_was_taken_from_the_run_that_protected_the_photos(audited: tuple[Path, str]):
    _, said = audited
    assert "base, instance_prompt, class_prompt, resolution, subject_kind, protected_set: as config.yaml in" in said
    assert str(PIPELINE) in said


def test_the_report_shows_photos_pictures_and_figures(audited: tuple[Path, str]):
    page = Page(audited[0] / "report.html")
    assert "Not protected" in page.text("verdict") or "Not shown to be protected" in page.text("verdict")
    text = page.text("photos")
    for words in ("Difference", "DreamBooth, clean", "protected, after flip", "void", "Brisque", "noise"):
        assert words in text
    assert any(name.startswith("original, photo 1 of") for name in page.values("alt"))  # under the slider
    assert "Pictures that match the subject" in page.text("checks")
    assert "hardened" not in page.text("verdict") + page.text("figures") + page.text("checks")
    assert not {"summary", "curves", "utility", "attacks"} & set(page.values("id"))


def test_the_report_is_made_again_as_it_was_and_says_where_pictures_are_missing(
    audited: tuple[Path, str], tmp_path: Path
):
    output = Path(shutil.copytree(audited[0], tmp_path / "out"))
    before = (output / "report.html").read_bytes()
    assert run("report", results=output) == 0
    assert (output / "report.html").read_bytes() == before
    shutil.rmtree(output / "pictures")
    assert run("report", results=output) == 0
    page = Page(output / "report.html")
    assert page.text("photos").count("The pictures are missing") == 12 and not page.values("src")


def test_the_results_have_a_schema_and_are_not_taken_for_those_of_models(audited: tuple[Path, str]):
    path, schema = audited[0] / "results.json", results_schema(PhotoResults)
    assert violations(json.loads(path.read_text()), schema, schema["$defs"]) == []
    with pytest.raises(UserError, match="is the audit of photos alone"):
        read_model_results(path)


def test_the_same_command_finds_its_attacks_finished(
    audited: tuple[Path, str], photos: Path, run_folder: Path, strangers: Path
):
    output, _ = audited
    before = (output / "results.json").read_text()
    options = LONGER | {"strangers_data_dir": strangers}
    assert run("audit", protected_photos=run_folder, photos=photos, output_dir=output, **options) == 1
    rows = [json.loads(text)["image_layer"]["attacks"] for text in (before, (output / "results.json").read_text())]
    assert rows[0] == rows[1]


def test_a_dry_run_reads_everything_and_writes_nothing(
    photos: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {"protected_photos": run_folder, "photos": photos, "output_dir": tmp_path / "out", "dry_run": "true"}
    assert run("audit", **given, **SHORT) == 0
    captured = capsys.readouterr()
    assert "nothing was written" in captured.out and "4 held out from both arms" in captured.err
    assert not (tmp_path / "out").exists()
    assert run("audit", **given, **SHORT, purifiers="jpg", strangers_data_dir=run_folder / "images") == 2
    said = capsys.readouterr().err
    assert 'no purifier "jpg"' in said and "none of them may be protected" in said  # both mistakes at once


def test_of_photos_in_sets_the_protected_ones_are_attacked_and_another_set_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sets = tmp_path / "sets"
    for place, letter in enumerate("ABC"):  # with equal names
        write_photos(1, range(2 * place, 2 * place + 2), sets / f"s01/set_{letter}")
    given = {"pretrained_model_name_or_path": PIPELINE, "instance_data_dir": sets, "resolution": 64}
    layer = {"image_layer.method": "noise", "image_layer.zero_shot.enabled": "false", "num_threads": 1}
    prompts = {"instance_prompt": PROMPT, "class_prompt": "a photo of a person", "protected_set": "B"}
    assert run("perturb", output_dir=tmp_path / "run", **given, **layer, **prompts) == 0
    capsys.readouterr()
    audit = {"protected_photos": tmp_path / "run", "photos": sets, "output_dir": tmp_path / "out", "dry_run": "true"}
    assert run("audit", **audit, **SHORT) == 0
    said = capsys.readouterr().err
    assert "set_B is protected, set_C is held out" in said and "2 photos in" in said and "2 held out\n" in said


def test_the_networks_are_tried_before_anything_is_written(
    photos: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    blind = write_dino(tmp_path / "blind")
    model = ViTModel.from_pretrained(blind, add_pooling_layer=False)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    model.save_pretrained(blind)
    given = {"protected_photos": run_folder, "photos": photos, "output_dir": tmp_path / "out"}
    assert run("audit", **given, **SHORT, judge=f"dino:{blind}") == 2
    assert "blind gives the same for different photos" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photos_of_another_tool_are_audited_against_a_named_model(
    photos: Path, by_another_tool: Path, strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {"protected_photos": by_another_tool, "photos": photos, "output_dir": tmp_path / "out"}
    given |= {"strangers_data_dir": strangers}
    assert run("audit", base=PIPELINE, resolution=64, seeds=1, instance_prompt=PROMPT, **given, **SHORT) == 1
    results = read_results(tmp_path / "out/results.json")
    assert isinstance(results, PhotoResults)
    layer = results.image_layer
    assert (layer.method, layer.epsilon, layer.format, layer.zero_shot) == ("unknown", {}, "png", None)
    assert len(layer.photos) == 11 and all(0 < (photo.visible.psnr or 0) < 40 for photo in layer.photos)
    assert "2 protected photos have another size than their originals" in capsys.readouterr().err
    assert "a tool that left no record" in Page(tmp_path / "out/report.html").text("photos")


def test_a_page_of_photos_that_protect_says_so(audited: tuple[Path, str], tmp_path: Path):
    content = read_results(audited[0] / "results.json")
    assert isinstance(content, PhotoResults)
    verdict = {**vars(content.verdict), "protected": True, "unreliable": [], "reasons": ["Few match."]}
    good = PhotoResults(**{**vars(content), "verdict": type(content.verdict)(**verdict)})
    write_photo_report(good, tmp_path / "report.html", {})
    assert "Protected" in Page(tmp_path / "report.html").text("verdict")


def test_of_four_photos_two_are_held_out_and_of_nine_three(tmp_path: Path):
    for number, count in ((1, 4), (2, 9)):
        write_photos(number, range(count), tmp_path / "mine" / f"s{number:02d}", size=16)
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    held = hold_out(load_protected_photos(tmp_path / "mine", tmp_path / "theirs", 16))
    assert {one: len(photos) for one, photos in held.references.items()} == {"s01": 2, "s02": 3}
    assert [len(subject.images) for subject in held.attacked.subjects] == [2, 6]
    assert [path.name for path in held.sets[0].files] == ["002.png", "003.png", "006.png", "007.png", "008.png"]


WORDS = ["--output_dir", "out"]
ONLY_WITH_HARDENED = {
    **{"suite": "quick", "placebo": "m", "sibling": "m", "subjects": "s", "attacks": "lora", "other_data_dir": "s"},
    **{"attack_data_dir": "s", "eval_steps": "1", "min_cost_factor": "2"},
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "hardened must be given, .* or protected_photos and photos"),
        (["--hardened", "h"], "base, subjects must be given with hardened"),
        (["--hardened", "h", "--base", "b", "--subjects", "s", "--photos", "p"], "photos is for protected photos"),
        (["--protected_photos", "p", "--base", "b"], "photos must be given"),
        (["--protected_photos", "tests", "--photos", "o"], "base must be given: nothing beside the photos in tests"),
        (["--protected_photos", "p", "--photos", "o", "--instance_data_dir", "q"], "two names of one option"),
        *(
            (["--protected_photos", "p", "--photos", "o", f"--{name}", value], f"{name} goes with a hardened model")
            for name, value in ONLY_WITH_HARDENED.items()
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_line(words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        load_config(AuditJobConfig, [*WORDS, *words])


def test_only_what_is_not_given_is_taken_from_the_run(run_folder: Path):
    words = ["--protected_photos", str(run_folder), "--photos", "o", *WORDS]
    taken = load_config(AuditJobConfig, words)
    assert (taken.base, taken.resolution, taken.instance_prompt) == (str(PIPELINE), 64, PROMPT)
    assert taken.class_prompt == "a photo of a person"
    given = load_config(AuditJobConfig, [*words, "--base", "b", "--instance_prompt", "a photo of sks dog"])
    assert (given.base, given.resolution, given.class_prompt) == ("b", 64, "a photo of dog")
    inside = load_config(AuditJobConfig, ["--protected_photos", str(run_folder / "images"), "--photos", "o", *WORDS])
    assert inside.base == str(PIPELINE)
    model = ["--hardened", "h", "--base", "b", "--subjects", "s"]
    assert load_config(AuditJobConfig, [*words, *model]).resolution == 512


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("same", "look exactly like those in"),
        ("few", "3 photos of s01, too few to hold some out for the audit: give at least 4"),
        ("missing", "005 has no protected photo"),
        ("inside", "lie in one another"),
        ("holdout", "has no folder s02"),
    ],
)
def test_photos_that_cannot_be_audited_are_said_before_anything_is_written(
    change: str,
    said: str,
    photos: Path,
    by_another_tool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    mine, theirs, out = tmp_path / "mine", tmp_path / "theirs", tmp_path / "out"
    shutil.copytree(photos, mine)
    shutil.copytree(by_another_tool if change != "same" else photos, theirs)
    more = {}
    if change == "few":
        for folder in (mine, theirs):
            for name in ("003.png", "004.png"):
                (folder / "s01" / name).unlink()
    if change == "missing":
        (theirs / "s02/005.png").unlink()
    if change == "inside":
        out = theirs / "out"
    if change == "holdout":
        write_photos(1, range(10, 12), tmp_path / "held/s01")
        more = {"holdout_data_dir": tmp_path / "held"}
    given = {"protected_photos": theirs, "photos": mine, "output_dir": out, "base": PIPELINE, "resolution": 64}
    assert run("audit", **given, **more) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
