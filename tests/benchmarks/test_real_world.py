"""The whole way of a host on real photos, by real commands: harden, protect photos, attack, judge, report, verify.

Real here are the photos, the face detector (SCRFD), the face encoder (MobileFaceNet, in an InsightFace pack) and the
latent space (TAESD's). The model is a Stable Diffusion 1.5 of three million weights, trained on the spot. So these
tests show that all parts work together on photos, and that only real networks judge. They show no protection.

Only one face encoder is at hand. So the encoder that judges is the one that the photos mislead, and no unrelated one
can contradict it. The report must say so. All of it takes about one minute of one core.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from foreign import foreign_lines
from real_assets import ASSETS, needs_assets

import apdm
from apdm.audit import Results, read_model_results
from apdm.export.leaks import scan_for_leaks
from apdm.export.manifest import verify_manifest
from apdm.families import load_family
from benchmarks import real_world
from benchmarks.real_world import PACK, QUICK

RESOLUTION = 128  # from which the detector sees the faces
ENCODER = "insightface_pack"

pytestmark = needs_assets


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_world.lay_out(ASSETS / "photos", tmp_path_factory.mktemp("photos") / "people", QUICK.photos)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = real_world.make_base(ASSETS, tmp_path_factory.mktemp("model") / "base", QUICK, RESOLUTION)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without the networks that know drawn portraits alone: a command that asked for one would fail."""
    folder = tmp_path_factory.mktemp("package")
    networks = shutil.ignore_patterns("portrait-*", "faceid-adapter.*", "__pycache__")
    shutil.copytree(real_world.ROOT / "apdm", folder / "apdm", ignore=networks)
    left = [path.name for path in (folder / "apdm/portraits/weights").iterdir()]
    assert left and not any(name.startswith("portrait-a") for name in left)
    return folder


@pytest.fixture(scope="module")
def hardened(
    people: Path, base: Path, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The output folder of the main job, and what the command said."""
    output = tmp_path_factory.mktemp("runs") / "hardened"
    options = real_world.harden_options(base, people, output, ASSETS / PACK, QUICK, RESOLUTION)
    done = real_world.run("harden", options, package)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.fixture(scope="module")
def results(hardened: tuple[Path, subprocess.CompletedProcess[str]]) -> Results:
    return read_model_results(hardened[0] / "results.json")


def test_the_main_job_leaves_what_it_promises(hardened, base) -> None:
    output, done = hardened
    assert foreign_lines(done.stderr) == []
    for name in ("model/model_index.json", "images/s01", "results.json", "report.html", "manifest.json"):
        assert (output / name).exists(), name
    assert verify_manifest(output) == []
    before, after = (load_family(folder).denoiser.state_dict() for folder in (base, output / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_family(output / "model").sample(["a photo of cat"], seed=0, num_inference_steps=2).isfinite().all()


def test_every_judge_of_faces_is_a_real_network(results) -> None:
    judges = results.judges
    assert [(one.name, one.threshold) for one in judges.encoders] == [(ENCODER, real_world.THRESHOLD)]
    assert judges.face_score is not None and judges.face_score.name == ENCODER
    assert results.utility.frechet.network == judges.quality["similarity"] == real_world.FEATURES


def test_a_second_unrelated_encoder_is_asked_for_before_anything_is_called_protected(hardened, results) -> None:
    assert any("one encoder only" in clause for clause in results.verdict.unreliable)
    assert results.image_layer.misled_judges == [ENCODER]
    for outcome in results.image_layer.by_attack:
        assert outcome.state != "protected"
        assert any("misled every encoder that judges" in clause for clause in outcome.unreliable)
    report = (hardened[0] / "report.html").read_text()
    assert "one encoder only" in report and f"{ENCODER}, misled" in report


def test_the_detector_and_the_encoder_see_the_person_in_edited_photos_until_these_are_protected(results) -> None:
    edited = {row.photos: row.identity[ENCODER] for row in results.image_layer.attacks if row.attack != "dreambooth"}
    assert edited["clean"].face_rate == edited["protected"].face_rate == 1
    assert edited["clean"].match_rate == 1 and edited["protected"].match_rate == 0
    assert edited["clean"].mean - edited["protected"].mean > 0.3
    cosines = [seen for photo in results.image_layer.photos for face in photo.faces for seen in face.cosine.values()]
    assert len(cosines) == QUICK.photos and all(seen.to_original < seen.threshold for seen in cosines)


def test_nothing_of_the_photos_is_in_the_exported_model(hardened, people) -> None:
    photos = sorted((people / "protected/s01").iterdir())
    needles = ["s01", str(people), *(part for photo in photos for part in (photo.name, photo.read_bytes()[600:664]))]
    assert not scan_for_leaks(hardened[0] / "model", needles)


def test_verify_accepts_what_harden_and_perturb_wrote(hardened, people, base, package, tmp_path) -> None:
    alone = tmp_path / "perturbed"
    options = real_world.perturb_options(base, people, alone, ASSETS / PACK, QUICK, RESOLUTION)
    done = real_world.run("perturb", {**options, "image_layer.method": "none"}, package)
    assert done.returncode == 0, done.stderr
    photos = json.loads((alone / "perturbation.json").read_text())["photos"]
    assert [len(photo["faces"]) for photo in photos] == [1] * QUICK.photos
    for output in (alone, hardened[0]):
        assert apdm.verify(output_dir=output, subjects=people / "protected").problems == ()


def test_the_benchmark_s_table_has_a_line_for_each_attack_and_its_caveat(results) -> None:
    found = real_world.figures(results)
    lines = real_world.table(found)
    assert sum(ENCODER in line for line in lines) == len(results.attacks) + len(results.image_layer.attacks)
    assert lines[-1] == real_world.CAVEAT
