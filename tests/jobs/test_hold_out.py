"""Without a folder of hold-out photos, `apdm harden` holds out the last third of each person's photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from html_page import Page
from PIL import Image
from real_assets import ASSETS, needs_assets
from tiny_pipelines import build_pipeline
from tiny_run import arguments

from apdm.audit import read_model_results
from apdm.audit.verdict import PERHAPS_SEEN
from apdm.cli import main
from apdm.config import AuditJobConfig, HardenConfig, make_config
from apdm.core.errors import UserError
from apdm.data.subjects import load_images
from apdm.families import load_family
from apdm.jobs.audit import load_audit
from apdm.jobs.hardening.files import HardenFiles, read_files
from apdm.jobs.hardening.final_audit import final_plan, photos_to_attack
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_photos

ROOT = Path(__file__).parents[2]
PACK = ASSETS / "encoders/insightface_pack"
DRAWN: dict[str, Any] = {
    "pretrained_model_name_or_path": PIPELINE,
    "instance_prompt": "a photo of t@t person",
    "class_prompt": "a photo of a person",
    "resolution": 64,
    "image_layer.enabled": True,
    "image_layer.method": "noise",
}
AUDITED = DRAWN | {"audit.enabled": True}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people with four and six photos, and four strangers."""
    folder = tmp_path_factory.mktemp("people")
    for number, count in ((1, 4), (2, 6)):
        write_photos(number, range(count), folder / f"subjects/s{number:02d}")
    for number in range(4):
        write_photos(500 + number, range(1), folder / f"strangers/p{number}")
    return folder


def read(people: Path, output: Path, **options: Any) -> HardenFiles:
    given = {"instance_data_dir": people / "subjects", "output_dir": output, **options}
    return read_files(make_config(HardenConfig, given))


def counted(photos: Any) -> dict[str, int]:
    return {subject: len(images) for subject, images in photos.items()}


@pytest.mark.parametrize("options", [AUDITED, DRAWN | {"validation.probe_steps": 1, "validation.steps": 1}])
def test_hardening_and_attacker_see_two_thirds_and_likeness_is_measured_on_the_last(
    options: dict[str, Any], people: Path, tmp_path: Path
) -> None:
    files = read(people, tmp_path / "out", **options)
    files.check_people([])
    assert counted(files.photos.instance) == {"s01": 2, "s02": 4}
    assert files.audit_inputs is not None and files.photo_job is not None
    for person in files.audit_inputs.subjects.protected:
        whole = load_images(sorted((people / "subjects" / person.id).iterdir()), 64)
        assert torch.equal(person.photos, files.photos.instance[person.id])
        assert torch.equal(torch.cat([person.photos, person.references]), whole)
    assert counted(files.photo_job.photos) == {"s01": 4, "s02": 6}  # whoever gives ten photos gets ten back


def test_nothing_is_held_out_without_an_audit_and_where_hold_out_photos_are_given(people: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write_photos(number, range(10, 12), tmp_path / f"held/s{number:02d}")
    for options in (DRAWN, AUDITED | {"audit.holdout_data_dir": tmp_path / "held"}):
        files = read(people, tmp_path / "out", **options)
        assert counted(files.photos.instance) == {"s01": 4, "s02": 6}
        assert files.audit_inputs is None or files.audit_inputs.subjects.held_out_from == "folder"


def test_without_an_audit_the_networks_that_are_misled_find_a_person_who_is_in_two_folders(
    people: Path, tmp_path: Path
) -> None:
    write_photos(1, range(10, 14), tmp_path / "consenting/c01")
    benign = {"pool.size": 2, "pool.benign_size": 1, "pool.benign_data_dir": tmp_path / "consenting"}
    files = read(people, tmp_path / "out", **DRAWN, **benign)
    assert files.audit_inputs is None
    with pytest.raises(UserError, match="consenting/c01 shows the person of .*/s01 .by portrait-a"):
        files.check_people([])


def test_the_attackers_own_photos_are_all_used_and_partners_go_with_their_photos(people: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write_photos(number, range(100, 103), tmp_path / f"attacker/s{number:02d}")
        write_photos(number + 5, range(4 if number == 1 else 6), tmp_path / f"subjects/s{number:02d}/safe")
        for photo in (people / f"subjects/s{number:02d}").iterdir():
            (tmp_path / f"subjects/s{number:02d}" / photo.name).symlink_to(photo)
    files = read(tmp_path, tmp_path / "out", **AUDITED, **{"audit.attack_data_dir": tmp_path / "attacker"})
    files.check_people([])
    assert counted(files.photos.safe) == {"s01": 2, "s02": 4}
    assert files.audit_inputs is not None
    assert files.audit_inputs.subjects.counts.attacked == {"s01": 3, "s02": 3}
    assert files.audit_inputs.subjects.counts.held_out == {"s01": 2, "s02": 2}


def test_the_audit_at_the_end_attacks_and_draws_with_the_options_of_the_run(people: Path, tmp_path: Path) -> None:
    write_photos(7, range(4), tmp_path / "others/o01")
    given = {"seed": 7, "sample_batch_size": 3, "output_dir": tmp_path / "out"}
    folders = {"instance_data_dir": people / "subjects", "audit.other_data_dir": tmp_path / "others"}
    folders["audit.strangers_data_dir"] = people / "strangers"
    config = make_config(HardenConfig, AUDITED | given | folders)
    inputs = read_files(config).audit_inputs
    assert inputs is not None
    base: Any = "the base"
    hardened: Any = "the hardened model"
    plan = final_plan(config, inputs, base, hardened)
    assert plan.models == {"base": base, "hardened": hardened} and plan.judges is inputs.judges
    assert (plan.seed, plan.drawing.batch_size, plan.options) == (7, 3, config.audit)
    assert (plan.prompts.instance_prompt, plan.class_prompt) == (DRAWN["instance_prompt"], DRAWN["class_prompt"])
    assert [person.id for person in plan.subjects.protected] == ["s01", "s02"]
    assert [person.id for person in plan.subjects.others] == ["o01"]
    assert plan.subjects.strangers is not None and len(plan.subjects.strangers) == 4


def test_a_person_with_too_few_photos_is_one_line(people: Path, tmp_path: Path) -> None:
    write_photos(3, range(3), tmp_path / "subjects/s03")
    said = "has 3 photos of s03, too few to hold some out for the audit: give at least 4, .* in audit.holdout_data_dir"
    with pytest.raises(UserError, match=said):
        read(tmp_path, tmp_path / "out", **AUDITED)


def test_plan_report_manifest_and_card_say_what_was_held_out(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"max_train_steps": 1, "l2p.inner_steps": 1, "num_class_images": 2, "sample_batch_size": 8}
    attack = {"max_train_steps": 1, "num_class_images": 2, "num_images": 1, "num_inference_steps": 1}
    given = AUDITED | short | {f"audit.{name}": value for name, value in attack.items()}
    given |= {"image_layer.zero_shot.enabled": False, "audit.strangers_data_dir": people / "strangers"}
    words = arguments(PIPELINE, people, tmp_path / "out", **given, instance_data_dir=people / "subjects")
    assert main(["harden", *words]) == 0
    third = "the last third of each person's photos by name, at least 2"
    plan = capsys.readouterr().err
    assert f"10 photos in {people}/subjects, as squares of 64 pixels; 4 held out from hardening and attacker" in plan
    assert f"{third}; all are protected" in plan
    assert len(sorted((tmp_path / "out/images").glob("*/*.png"))) == 10
    results = read_model_results(tmp_path / "out/results.json")
    assert results.photos is not None and results.photos.held_out_from == "originals"
    assert (results.photos.attacked, results.photos.held_out) == ({"s01": 2, "s02": 4}, {"s01": 2, "s02": 2})
    assert results.image_layer is not None and len(results.image_layer.photos) == 10
    said = Page(tmp_path / "out/report.html").text("verdict")
    assert (
        "The attacker had 6 photos, and likeness was measured on 4 others, which were held out: the last third" in said
    )
    assert json.loads((tmp_path / "out/manifest.json").read_text())["held_out"] == third
    assert third in (tmp_path / "out/model/README.md").read_text()
    whole = {"s01": 4, "s02": 6}
    for more, attacked in (({}, results.photos.attacked), ({"audit.holdout_data_dir": people / "subjects"}, whole)):
        folders = {"instance_data_dir": people / "subjects", "output_dir": tmp_path / "out"}
        config = make_config(HardenConfig, given | folders | more)
        inputs = read_files(config).audit_inputs
        assert inputs is not None and photos_to_attack(config, inputs).counts == attacked
    photos = {"subjects": people / "subjects", "photos": people / "subjects", "protected_photos": tmp_path / "out"}
    models = {"base": PIPELINE, "hardened": tmp_path / "out/model", "attacks": "dreambooth", "resolution": 64}
    prompts = {name: AUDITED[name] for name in ("instance_prompt", "class_prompt")}
    words = [f"--{key}={value}" for key, value in (photos | models | prompts).items()]
    assert main(["audit", *words, f"--output_dir={tmp_path / 'audit'}", "--dry_run"]) == 0
    said_too = capsys.readouterr().err
    assert f"6 photos that the attacker trains on; 4 held out: {third}" in said_too and "attacked too" in said_too
    assert results.photos.left_out and PERHAPS_SEEN not in results.verdict.notes
    load_family(tmp_path / "out/model").save(tmp_path / "plain")  # without a header
    (tmp_path / "plain/other.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    for hardened, left_out in ((tmp_path / "out/model", True), (tmp_path / "plain", False)):
        changed = {**photos, **models, **prompts, "attacks": ["dreambooth"], "hardened": hardened}
        read_plan, _, _ = load_audit(make_config(AuditJobConfig, {**changed, "output_dir": tmp_path / "audit"}), None)
        assert read_plan.subjects.counts.left_out is left_out


@needs_assets
def test_the_plain_command_passes_its_dry_run_with_photos_and_a_pack_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_pipeline(tmp_path / "make", miniature=False).save_pretrained(tmp_path / "model")
    known = tmp_path / "buffalo_l"  # a pack whose recogniser has the name of one with a published threshold
    known.mkdir()
    for name, file in (("det_10g.onnx", "scrfd_500m_bnkps.onnx"), ("w600k_r50.onnx", "rec_mobilefacenet.onnx")):
        (known / name).symlink_to(PACK / file)
    for photo in sorted((ASSETS / "photos/faces/f01").iterdir())[:5]:
        (tmp_path / "subjects/s01").mkdir(parents=True, exist_ok=True)
        Image.open(photo).resize((96, 96)).save(tmp_path / "subjects/s01" / f"{photo.stem}.png")
    small = {"pretrained_model_name_or_path": tmp_path / "model", "resolution": 96, "output_dir": tmp_path / "out"}
    words = ["--instance_data_dir", str(tmp_path / "subjects"), *(f"--{key}={value}" for key, value in small.items())]
    command = ["harden", "--config", str(ROOT / "configs/sd15.yaml"), *words, "--dry_run"]
    assert main([*command, "--faces", str(known)]) == 0
    said = capsys.readouterr().err
    assert "5 photos in" in said and "2 held out from hardening and attacker: the last third" in said
    assert "the audit can claim no protection: one encoder only (buffalo_l)" in said
    assert "changes the class (no network: give one as judge, such as dino:facebook/dinov2-small)" in said
    assert "faces seen" in said and "in 5 of 5 photos by buffalo_l" in said
    probe = ["--audit.enabled", "false", "--validation.steps", "1", "--validation.probe_steps", "1"]
    assert main([*command, *probe, "--faces", str(known)]) == 0  # which needs no network for whole pictures
    assert "no protection" not in capsys.readouterr().err
    assert main([*command, "--faces", str(PACK)]) == 2
    assert f"give {PACK}=0.3 in place of {PACK}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
