"""Networks for faces belong to one world: that of the drawn people, or that of real photos. A mix is bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_copy import changed_copy
from PIL import Image, ImageFilter
from real_assets import ASSETS, needs_assets
from tiny_judges import write_dino
from tiny_pipelines import BUILDERS, build_pipeline
from tiny_run import OPTIONS

import apdm
from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, make_config
from apdm.core.errors import UserError, UserErrors
from apdm.families.miniature import is_miniature
from apdm.jobs.audit import audit_models
from apdm.jobs.harden import harden
from apdm.jobs.hardening.checkpoint import compare, fingerprint
from apdm.jobs.perturb import perturb
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects

PACK = f"{ASSETS / 'encoders/insightface_pack'}=0.255"
ASKED = r"give --faces and the folder of an InsightFace pack, such as an unpacked buffalo_l"
BOTH = {"audit.enabled": True, "image_layer.enabled": True, "image_layer.method": "noise"}

Job = Callable[..., object]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and a hardened model with another vocabulary, and pictures as cameras take them: blurred colours."""
    root = tmp_path_factory.mktemp("outside")
    build_pipeline(root, miniature=False).save_pretrained(root / "base")
    changed_copy(root / "base", root / "hardened")
    rng = np.random.default_rng(0)
    for role in ("attacker", "holdout", "strangers"):
        (root / "people" / role / "p1").mkdir(parents=True)
        for number in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
            noise.filter(ImageFilter.GaussianBlur(4)).save(root / "people" / role / "p1" / f"{number}.png")
    return {name: root / name for name in ("base", "hardened", "people")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_subjects(folder, protected=1, others=0, consenting=0, strangers=2)
    return folder


def run_harden(model: Path, people: Path, output: Path, **options: object) -> object:
    given = {"pretrained_model_name_or_path": model, "instance_data_dir": people / "attacker", "output_dir": output}
    judged = {"audit.holdout_data_dir": people / "holdout", "audit.strangers_data_dir": people / "strangers"}
    return harden(make_config(HardenConfig, {**OPTIONS, **given, **judged, **options}))


def run_perturb(model: Path, people: Path, output: Path, **options: object) -> object:
    given = {"pretrained_model_name_or_path": model, "instance_data_dir": people / "attacker", "output_dir": output}
    return perturb(make_config(PerturbConfig, {**given, "resolution": 64, "image_layer.method": "noise", **options}))


def run_audit(model: Path, people: Path, output: Path, **options: object) -> object:
    given = {"base": model, "hardened": model.parent / "hardened", "subjects": people, "output_dir": output}
    return audit_models(make_config(AuditJobConfig, {**given, "attacks": ["dreambooth"], "resolution": 64, **options}))


def test_models_of_the_miniature_world_are_known_in_every_layout(tmp_path: Path):
    pipeline = build_pipeline(tmp_path / "tiny").to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert is_miniature(PIPELINE) and is_miniature(str(tmp_path / "half"))
    (tmp_path / "model.safetensors").write_bytes(b"any")
    assert is_miniature(tmp_path / "model.safetensors", PIPELINE) and not is_miniature(tmp_path / "model.safetensors")
    build_pipeline(tmp_path / "other", miniature=False).save_pretrained(tmp_path / "other/model")
    assert not is_miniature(tmp_path / "other/model") and not is_miniature("stabilityai/some-model")
    assert not is_miniature(tmp_path / "model.safetensors", tmp_path / "other/model")
    for kind in ("sdxl", "sd3", "flux", "flux2", "zimage"):
        BUILDERS[kind](tmp_path / kind).save_pretrained(tmp_path / kind / "model")
        assert is_miniature(tmp_path / kind / "model")


@pytest.mark.parametrize("job", [run_harden, run_perturb, run_audit])
def test_the_bundled_networks_never_look_at_a_model_from_outside(job: Job, outside: dict[str, Path], tmp_path: Path):
    judge = [f"dino:{write_dino(tmp_path / 'dino')}"]
    options = {run_harden: {**BOTH, "audit.judge": judge}, run_perturb: {}, run_audit: {"judge": judge}}[job]
    for names, said in (
        ({}, f"nothing says which networks look at faces, .*{ASKED}"),
        ({"audit.encoders": ["portrait-a"]}, f"audit.encoders portrait-a knows only the drawn people .*{ASKED}"),
        ({"encoders": ["portrait-b"]}, f"encoders portrait-b knows only the drawn people .*{ASKED}"),
        ({"face_score": "portrait"}, f"face_score portrait knows only the drawn people .*{ASKED}"),
        ({"image_layer.zero_shot.detector": "portrait"}, f"zero_shot.detector portrait knows only .*{ASKED}"),
    ):
        known = {run_harden: ("audit.", "image_layer."), run_perturb: ("image_layer.",), run_audit: ("encoders", "fa")}
        if all(name.startswith(known[job]) for name in names):
            with pytest.raises(UserError, match=said) as error:
                job(outside["base"], outside["people"], tmp_path / "out", **options, **names)
            assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("job", "prefix"), [(run_harden, "audit."), (run_audit, "")])
def test_missing_networks_and_photos_are_told_together(job: Job, prefix: str, outside: dict[str, Path], tmp_path: Path):
    options = (BOTH if job is run_harden else {}) | {f"{prefix}strangers_data_dir": tmp_path / "nobody"}
    with pytest.raises(UserErrors) as found:
        job(outside["base"], outside["people"], tmp_path / "out", **options)
    said = sorted(map(str, found.value.errors))
    assert len(said) == 2 and str(tmp_path / "nobody") in said[0], said
    assert said[1].startswith("nothing says which networks look at faces"), said


def test_a_hardening_that_looks_at_no_faces_needs_no_networks(outside: dict[str, Path], tmp_path: Path):
    run_harden(outside["base"], outside["people"], tmp_path / "out", max_train_steps=1)
    assert (tmp_path / "out/model").is_dir()


def test_photos_in_which_no_face_is_seen_are_refused_before_any_work(outside: dict[str, Path], tmp_path: Path):
    people, said = outside["people"], r"sees a face in 0 of the 3 photos in .*attacker/p1: it knows only drawn people"
    with pytest.raises(UserError, match=f"portrait {said}"):
        run_perturb(PIPELINE, people, tmp_path / "out")
    with pytest.raises(UserError, match=f"portrait-face {said}"):
        run_harden(PIPELINE, people, tmp_path / "out", **{**BOTH, "image_layer.enabled": False, "resolution": 64})
    assert not (tmp_path / "out").exists()


@needs_assets
def test_real_networks_never_look_at_drawn_people(drawn: Path, tmp_path: Path):
    for job, options in ((run_harden, BOTH), (run_perturb, {})):
        with pytest.raises(UserError, match=r"is a model of the miniature world, .*leave out faces .*insightface_pack"):
            job(PIPELINE, drawn, tmp_path / "out", faces=[PACK], **options)
    assert not (tmp_path / "out").exists()


@needs_assets
def test_a_pack_that_sees_no_face_in_the_photos_is_told_before_any_work(outside: dict[str, Path], tmp_path: Path):
    said = r"insightface_pack sees a face in 0 of the 3 photos in .*attacker/p1: give photos that show"
    judge = {"judge": [f"dino:{write_dino(tmp_path / 'dino')}"]}
    for job, options in ((run_audit, judge), (run_perturb, {})):
        with pytest.raises(UserError, match=said):
            job(outside["base"], outside["people"], tmp_path / "out", faces=[PACK], **options)
    assert not (tmp_path / "out").exists()


@needs_assets
def test_a_pack_protects_real_photos_and_the_files_name_its_networks(
    outside: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    photos = sorted((ASSETS / "photos/faces/f01").iterdir())[:2]
    (tmp_path / "people/p1").mkdir(parents=True)
    for photo in photos:
        shutil.copy(photo, tmp_path / "people/p1")
    result = apdm.perturb(
        pretrained_model_name_or_path=outside["base"],
        instance_data_dir=tmp_path / "people",
        output_dir=tmp_path / "out",
        resolution=64,
        faces=[PACK],
        image_layer={"method": "none", "zero_shot": {"max_steps": 2}},
    )
    assert result.figures is not None and result.figures.misled is not None and result.figures.detector is not None
    (misled,) = result.figures.misled
    assert (misled.name, misled.threshold) == ("insightface_pack", 0.255)
    for network, file in ((misled, "rec_mobilefacenet.onnx"), (result.figures.detector, "scrfd_500m_bnkps.onnx")):
        assert network.sha256 == sha256((ASSETS / "encoders/insightface_pack" / file).read_bytes()).hexdigest()
    written = json.loads((tmp_path / "out/perturbation.json").read_text())
    assert written["misled"][0]["sha256"] == misled.sha256
    assert all(list(face.cosine) == ["insightface_pack"] for photo in result.figures.photos for face in photo.faces)
    assert "insightface_pack still recognises the person in 2 of 2 photos, although it was to be misled" in caplog.text


def test_a_run_may_be_resumed_with_other_networks_for_faces(tmp_path: Path):
    needed = {"pretrained_model_name_or_path": "base", "instance_data_dir": "people", "output_dir": "out"}
    before, now = (fingerprint(make_config(HardenConfig, needed | {"faces": faces})) for faces in ([], ["pack=0.3"]))
    assert compare(before, now) == ["resuming with another faces"]
