"""Objects and animals: no network for faces, likeness by DINO and CLIP, a threshold from the photos themselves."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_copy import changed_copy
from html_page import Page
from PIL import Image, ImageDraw
from real_assets import ASSETS, needs_assets
from tiny_judges import write_clip, write_dino
from tiny_pipelines import build_pipeline
from tiny_run import OPTIONS

from apdm.audit.inputs.match_thresholds import with_match_thresholds
from apdm.audit.inputs.people import PhotoFolders
from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, make_config
from apdm.core.errors import UserError
from apdm.faces import FaceChoice, FaceNetworks
from apdm.jobs.audit import audit_models
from apdm.jobs.auditing.inputs import load_judges
from apdm.jobs.dry_run import protect_photos
from apdm.jobs.harden import harden
from apdm.jobs.perturb import perturb
from apdm.metrics.extractors import VisionModel
from apdm.metrics.judges import Judges
from apdm.metrics.objects import ObjectEncoder
from apdm.metrics.trial import try_judges
from apdm.metrics.utility import class_utility
from apdm.portraits import PIPELINE

DOG = "a photo of sks dog"
OBJECT: dict[str, Any] = {"subject_kind": "object", "instance_prompt": DOG}
SHORT: dict[str, Any] = {
    "attacks": ["dreambooth"],
    "seeds": 1,
    "resolution": 16,
    "max_train_steps": 1,
    "num_class_images": 2,
    "num_images": 1,
    "num_inference_steps": 1,
    "num_threads": 1,
}


def draw_object(number: int, turn: int) -> Image.Image:
    """Coloured bars on a grey background: colour and direction are the object's, the place is the photo's."""
    image = Image.new("RGB", (32, 32), (120, 120, 120))
    colour = ((40, 90, 220), (220, 60, 30), (30, 200, 60), (230, 220, 20))[number]
    places = ((3 + turn, 4, 10 + turn, 28), (4, 5 + turn, 28, 12 + turn), (2 + turn, 2, 14, 10 + turn), (1, 1, 9, 9))
    ImageDraw.Draw(image).rectangle(places[number], fill=colour)
    return image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and a hardened model from outside the miniature world, networks, and photos of objects."""
    root = tmp_path_factory.mktemp("objects")
    build_pipeline(root, miniature=False).save_pretrained(root / "base")
    changed_copy(root / "base", root / "hardened")
    for number, (role, name) in enumerate((("attacker", "o1"), ("other", "o2"), ("strangers", "o3"))):
        for turn in range(6):
            folder = role if turn < 3 or role == "strangers" else "holdout"
            (root / "things" / folder / name).mkdir(parents=True, exist_ok=True)
            draw_object(number, turn).save(root / "things" / folder / name / f"{turn}.png")
    write_dino(root / "tiny-dino")
    write_clip(root / "tiny-clip")
    return {name: root / name for name in ("base", "hardened", "things", "tiny-dino", "tiny-clip")}


def run_audit(world: dict[str, Path], output: Path, **options: Any) -> dict[str, Any]:
    judge = [f"dino:{world['tiny-dino']}", f"clip:{world['tiny-clip']}"]
    given = {"base": world["base"], "hardened": world["hardened"], "subjects": world["things"], "output_dir": output}
    audit_models(make_config(AuditJobConfig, {**given, **SHORT, **OBJECT, "judge": judge, **options}))
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def test_an_audit_of_objects_judges_by_dino_and_clip_and_looks_for_no_faces(world: dict[str, Path], tmp_path: Path):
    results = run_audit(world, tmp_path / "out")
    judges = results["judges"]
    assert [one["name"] for one in judges["encoders"]] == ["tiny-dino", "tiny-clip"]
    assert judges["face_score"] is None and judges["attributes"] is None and judges["clip"] == "tiny-clip"
    for name, how in judges["measured"].items():
        # The attacker's 2 x 3 photos and 2 x 3 hold-out photos; 2 x 6 of the other subject and 2 x 6 of strangers.
        assert (how["own"], how["others"], how["source"]) == (12, 24, "photos"), name
    for row in results["attacks"]:
        assert row["status"] == "ok", row["error"]
        assert set(row["quality"]) == {"kernel_distance_to_class", "similarity", "brisque"}
        assert all(entry["face_rate"] is None for entry in row["identity"].values())
    utility = results["utility"]
    assert utility["class_face_rate"] is None and utility["clip"] is not None
    assert utility["frechet"] == {"name": "Frechet distance", "network": "tiny-dino"} | {
        key: utility["frechet"][key] for key in ("to_base", "base_seed_to_seed")
    }
    (check,) = [check for check in results["verdict"]["checks"] if check["name"] == "class_face_rate"]
    assert check["passed"] is None and check["detail"] == ("The subjects are no people, so faces were not looked for.")
    assert not any("one encoder only" in flag for flag in results["verdict"]["unreliable"])
    page = Page(tmp_path / "out/report.html")
    assert "Protected subjects" in page.text() and "Show a face" not in page.text()
    assert "threshold of tiny-dino equal error on this audit's photos" in page.text()


def test_one_object_without_others_is_measured_against_class_pictures_and_that_is_said(
    world: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    things = tmp_path / "things"
    for role in ("attacker", "holdout"):
        shutil.copytree(world["things"] / role / "o1", things / role / "o1")
    for photo in ("1.png", "2.png"):
        (things / "attacker/o1" / photo).unlink()
        (things / f"holdout/o1/{int(photo[0]) + 3}.png").unlink()
    with caplog.at_level(logging.INFO, logger="apdm"):
        results = run_audit(world, tmp_path / "out", subjects=things, judge=[f"dino:{world['tiny-dino']}"])
    how = results["judges"]["measured"]["tiny-dino"]
    assert how["source"] == "class pictures" and (how["own"], how["others"]) == (1, 2)
    said = "the match threshold of tiny-dino rests on 1 own photos and 2 pictures of others, and 5 and 20 are needed"
    assert any(flag.startswith(said) for flag in results["verdict"]["unreliable"])
    assert any("the match threshold will rest on 1 photos of the subjects, 5 are needed" in m for m in caplog.messages)
    assert any("measured against the base's class pictures" in message for message in caplog.messages)


def test_photos_of_objects_are_protected_without_any_network_for_faces(world: dict[str, Path], tmp_path: Path):
    given = {"pretrained_model_name_or_path": world["base"], "instance_data_dir": world["things"] / "attacker"}
    options = {**given, **OBJECT, "output_dir": tmp_path / "out", "resolution": 16, "image_layer.method": "noise"}
    perturb(make_config(PerturbConfig, options))
    facts = json.loads((tmp_path / "out/perturbation.json").read_text())
    assert facts["zero_shot"] is False and len(facts["photos"]) == 3
    assert all(photo["faces"] == [] for photo in facts["photos"])


def test_the_layer_against_face_adapters_is_refused_for_objects_and_its_absence_is_told(
    world: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    given = {"pretrained_model_name_or_path": world["base"], "instance_data_dir": world["things"] / "attacker"}
    options = {**given, **OBJECT, "output_dir": tmp_path / "out", "resolution": 16, "image_layer.method": "noise"}
    for job in (PerturbConfig, HardenConfig):
        with pytest.raises(UserError, match=r"image_layer\.zero_shot\.enabled is about faces"):
            make_config(job, {**options, "image_layer.zero_shot.enabled": True})
        assert make_config(job, {**options, "image_layer.zero_shot.enabled": False}) == make_config(job, options)
    with caplog.at_level(logging.INFO, logger="apdm"):
        protect_photos(make_config(PerturbConfig, {**options, "dry_run": True}))
    assert any("fine-tuning (noise); not zero-shot adapters, because objects have no" in m for m in caplog.messages)


def test_a_model_is_hardened_and_audited_against_an_object(world: dict[str, Path], tmp_path: Path):
    short = {
        f"audit.{name}": value for name, value in SHORT.items() if name not in ("attacks", "resolution", "num_threads")
    }
    given = {
        "pretrained_model_name_or_path": world["base"],
        "instance_data_dir": world["things"] / "attacker",
        "audit.holdout_data_dir": world["things"] / "holdout",
        "audit.strangers_data_dir": world["things"] / "strangers",
        "audit.judge": [f"dino:{world['tiny-dino']}"],
        "audit.enabled": True,
        "image_layer.enabled": True,
        "image_layer.method": "noise",
        "output_dir": tmp_path / "out",
    }
    harden(make_config(HardenConfig, {**OPTIONS, **short, **OBJECT, **given, "max_train_steps": 1}))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["judges"]["measured"]) == ["tiny-dino"] and results["image_layer"]["zero_shot"] is False
    assert {row["status"] for row in results["image_layer"]["attacks"]} == {"ok"}
    page = (tmp_path / "out/report.html").read_text()
    assert "changed by noise within 7 grey levels against fine-tuning, and what" in page


NAMED = {"pretrained_model_name_or_path": "m", "instance_data_dir": "i", "output_dir": "o"}
AUDITED = {"base": "b", "hardened": "h", "subjects": "s", "output_dir": "o", "judge": ["dino:a/b"]}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            PerturbConfig,
            {"instance_prompt": "a photo of sks person"},
            'instance_prompt is "a photo of sks person"; write',
        ),
        (PerturbConfig, {"instance_prompt": "a photo of dog"}, 'class_prompt is "a photo of person", because instance'),
        (PerturbConfig, {"faces": ["x"]}, "faces is about faces, but subject_kind is object; leave it out"),
        (
            PerturbConfig,
            {"image_layer.zero_shot.encoders": ["x"]},
            "image_layer.zero_shot.encoders is about faces, but subject_kind is object",
        ),
        (PerturbConfig, {"image_layer.method": "none"}, "for subject_kind object there is no other layer"),
        (
            HardenConfig,
            {"image_layer.method": "none", "image_layer.enabled": True},
            "for subject_kind object there is no other layer",
        ),
        (
            HardenConfig,
            {"audit.enabled": True},
            "likeness is judged by DINO or CLIP; name one: audit.judge dino:",
        ),
        (HardenConfig, {"audit.enabled": True, "audit.faceid_adapter": "x"}, "audit.faceid_adapter is about faces"),
        (AuditJobConfig, {"judge": ["inception:x.pth"]}, "likeness is judged by DINO or CLIP; name one: judge dino:"),
        (AuditJobConfig, {"encoders": ["x"]}, "encoders is about faces, but subject_kind is object"),
        (AuditJobConfig, {"face_score": "x"}, "face_score is about faces, but subject_kind is object"),
        (AuditJobConfig, {"faces": ["x"]}, "faces is about faces, but subject_kind is object"),
    ],
)
def test_options_about_faces_are_refused_for_objects(kind: type, options: dict[str, Any], said: str):
    given = AUDITED if kind is AuditJobConfig else NAMED
    with pytest.raises(UserError) as error:
        make_config(kind, {**given, **OBJECT, **options})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_that_only_misleads_faces_hardens_against_objects_too():
    config = make_config(HardenConfig, {**NAMED, **OBJECT, "image_layer.method": "none"})
    assert not config.protects_photos


def test_a_model_from_outside_is_not_judged_by_the_bundled_features():
    faces, pictures = FaceNetworks(FaceChoice()), torch.rand(3, 3, 64, 64)
    bundled, none = (
        load_judges(make_config(HardenConfig, {**NAMED, "pretrained_model_name_or_path": model}), faces)
        for model in (PIPELINE, "x")
    )
    assert bundled.extractor is not None and none.extractor is None and none.dino is None
    try_judges(none, pictures)
    seen = none.features(pictures)
    assert seen.extracted is None and seen.whole is None and seen.part(0, 2).whole is None
    assert none.similarity(seen, none.whole_features(pictures)) is None
    drawn = {name: none.features(torch.rand(3, 3, 64, 64)) for name in ("base", "base_again", "hardened")}
    utility = class_utility(drawn, none.extractor)
    assert (utility.num_images, utility.frechet.network, utility.frechet.to_base) == (3, None, None)
    assert none.describe().quality["similarity"].startswith("no network: give one as judge, such as dino:")


@needs_assets
def test_thresholds_of_the_dreambooth_subjects(tmp_path: Path):
    for subject in sorted((ASSETS / "photos/subjects").iterdir()):
        for number, photo in enumerate(sorted(subject.glob("*.jpg")) if subject.is_dir() else []):
            place = tmp_path / ("attacker" if number < 2 else "holdout") / subject.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, place / photo.name)
    subjects = PhotoFolders(attack=str(tmp_path / "attacker"), holdout=str(tmp_path / "holdout")).load(64)
    encoder = ObjectEncoder(extractor=VisionModel(write_dino(tmp_path / "tiny-dino")))
    judges = with_match_thresholds(Judges([encoder], None, encoder.extractor), subjects, torch.zeros(0, 3, 64, 64))
    (found,) = judges.encoders
    assert isinstance(found, ObjectEncoder) and found.measured is not None
    assert len(subjects.protected) == 8 and found.measured.own >= 8 * 4
    # Random weights see colours and little else; better than chance is all that can be asked of them.
    assert max(found.measured.false_match_rate, found.measured.false_non_match_rate) < 0.5
    assert with_match_thresholds(judges, subjects, torch.zeros(0, 3, 64, 64)) is judges
