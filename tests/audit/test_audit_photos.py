"""The main job with the image layer: photos shipped beside the model, attacked in the audit, shown in the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_photos import FACES, PHOTOS, attack_photos
from html_page import Page
from portrait_run import harden
from real_signals import stopped_in_a_library
from stored_cells import processes
from tiny_results import picture

from apdm.audit import photo_attacks
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.protected_photos import PhotoPair, load_protected_photos
from apdm.audit.photo_attacks import PhotoCell
from apdm.audit.results.file import read_results
from apdm.audit.results.store import CellStore
from apdm.cli import main
from apdm.config import AuditConfig, HardenConfig, load_config
from apdm.core.errors import Interrupted, UserError
from apdm.core.signals import stop_on_signals
from apdm.export.leaks import scan_for_leaks
from apdm.export.manifest import verify_manifest
from apdm.families import Family
from apdm.jobs.hardening.final_audit import load_audit_inputs
from apdm.portraits import ADAPTER, PIPELINE
from apdm.portraits.subjects import write_subjects
from apdm.report.audit_page import write_report

QUICK = {
    "image_layer.enabled": "true",
    "image_layer.dladiff.static_steps": 2,
    "image_layer.dladiff.rounds": 1,
    "image_layer.dladiff.surrogate_steps": 1,
    "image_layer.zero_shot.max_steps": 20,
    "audit.enabled": "true",
    "audit.max_train_steps": 1,
    "audit.nominal_step": 1,
    "audit.eval_steps": 1,
    "audit.num_class_images": 4,
    "audit.num_images": 2,
    "audit.num_inference_steps": 2,
}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_subjects(folder, protected=1, others=1, consenting=2, strangers=4)
    return folder


@pytest.fixture(scope="module")
def output(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "both"
    result = harden(people, output, **QUICK)
    assert result.returncode == 0, result.stderr
    return output


def test_one_run_ships_the_model_and_the_photos(output: Path, people: Path):
    originals = sorted(p.name for p in (people / "protected/s01").iterdir())
    assert sorted(p.name for p in (output / "images/s01").iterdir()) == originals
    shipped = {entry["path"] for entry in json.loads((output / "manifest.json").read_text())["files"]}
    assert {f"images/s01/{name}" for name in originals} | {"perturbation.json", "results.json"} <= shipped
    assert verify_manifest(output) == []
    assert not scan_for_leaks(output / "model", ["images/s01", (output / "images/s01/000.png").read_bytes()[60:120]])


def test_the_results_compare_clean_and_protected_photos(output: Path):
    layer = json.loads((output / "results.json").read_text())["image_layer"]
    assert [(row["attack"], row["photos"]) for row in layer["attacks"]] == [
        ("dreambooth", "clean"),
        ("dreambooth", "protected"),
        ("faceid", "clean"),
        ("faceid", "protected"),
    ]
    for row in layer["attacks"]:
        assert row["status"] == "ok", row["error"]
        assert set(row["identity"]) == {"portrait-a", "portrait-b"}
    assert len(layer["photos"]) == 4 and all(p["visible"]["linf"] <= 11 / 255 + 1e-9 for p in layer["photos"])


def test_the_report_shows_photos_their_change_and_what_attacks_make_of_them(output: Path):
    page = Page(output / "report.html")
    text = page.text("photos")
    for words in ("Protected photos", "Difference", "DreamBooth, clean", "FaceID adapter", "grey levels"):
        assert words in text
    assert any(name.startswith("original, photo 1 of") for name in page.values("alt"))  # under the slider
    assert all(source.startswith("data:") for source in page.values("src"))


def test_the_photos_themselves_are_shown_only_where_that_is_allowed(output: Path, tmp_path: Path):
    results = read_results(output / "results.json")
    write_report(results, tmp_path / "report.html", {"layer/dreambooth/clean/s01/0": [picture()]})
    page = Page(tmp_path / "report.html")
    assert "DreamBooth, clean" in page.text("photos") and "Difference" not in page.text("photos")
    assert not any(name.startswith("original") for name in page.values("alt"))


def test_protected_photos_are_attacked_after_each_purifier_too_and_rows_are_kept(tmp_path: Path):
    settings = {"purifiers": ["flip", "jpeg:quality=50"]}
    store = CellStore(tmp_path / "cells")
    rows, pictures = attack_photos(tmp_path / "gone.safetensors", settings, store)
    dreambooth = [row for row in rows if row.attack == "dreambooth"]
    assert [(row.photos, row.purifier) for row in dreambooth] == [
        ("clean", None),
        ("protected", None),
        ("protected", "flip"),
        ("protected", "jpeg:quality=50"),
    ]
    assert "layer/dreambooth/protected+jpeg_quality=50/s01/0" in pictures
    assert [row.status for row in rows].count("failed") == 4  # the adapter's: tried again, and failing again
    again, _ = attack_photos(tmp_path / "gone.safetensors", settings, store)
    assert [row.seconds for row in again[:4]] == [row.seconds for row in rows[:4]]


def test_an_attacker_may_also_have_clean_photos(tmp_path: Path):
    """With all but the first photo left unprotected by the protection itself, the mix is the clean set."""
    first = PHOTOS + torch.tensor([0.1, 0.0]).view(2, 1, 1, 1)
    rows, _ = attack_photos(tmp_path / "gone.safetensors", {"purifiers": ["mix"]}, protected=first)
    clean, protected, mixed = (row for row in rows if row.attack == "dreambooth")
    assert (mixed.photos, mixed.purifier, mixed.status) == ("protected", "mix", "ok")
    assert mixed.identity == clean.identity != protected.identity


@pytest.mark.parametrize(
    ("spec", "numbers"), [("mix", [0, 6, 7, 8]), ("mix:clean=2", [0, 1, 7, 8]), ("mix:clean=none", [0, 1, 2, 8])]
)
def test_the_first_photos_of_a_mix_are_the_originals(spec: str, numbers: list[int]):
    originals, protected = (torch.arange(k, k + 4).view(4, 1, 1, 1).expand(4, 3, 2, 2).float() for k in (0, 5))
    cell = PhotoCell("s01", PhotoPair(originals, protected), "dreambooth", "protected", spec, 0)
    assert cell.used[:, 0, 0, 0].tolist() == numbers
    assert replace(cell, photos="clean").used is originals
    with pytest.raises(UserError, match="mix takes 4 clean photos of 4, so none is protected; lower clean"):
        _ = replace(cell, purifier="mix:clean=4").used
    specs = PhotoAttackSpecs(adapter=None, purifiers=[spec, "jpeg"])
    specs.check_photos({"s01": 4, "s02": 9})
    with pytest.raises(UserError, match="of 1, so none is protected"):
        replace(specs, purifiers=["mix"]).check_photos({"s01": 4, "s02": 1})


@pytest.mark.parametrize(
    ("kind", "said"), [("sd15", "start_step is 20, and a picture is"), ("sd3", "with DDIM, which")]
)
def test_an_attack_that_edits_photos_is_compared_with_the_model_and_then_with_the_steps(
    families: Callable[[str], Family], kind: str, said: str
) -> None:
    specs = PhotoAttackSpecs(adapter=None, attacks=["masactrl:start_layer=0,start_step=20"])
    with pytest.raises(UserError, match=said):
        specs.check(families(kind), 20)
    if kind == "sd15":
        specs.check(families(kind), 21)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("textual_inversion:num_vectors=14", "lower num_vectors"),
        ("lora:min_timestep=0.9991,max_timestep=0.9995", "no timestep lies between"),
        (f"dreambooth:class_noun={'very ' * 9}long person", "would be cut off; shorten the prompt"),
        ("lora:num_inference_steps=1001", "num_inference_steps is 1001"),
    ],
)
def test_an_attack_on_photos_that_does_not_fit_the_model_is_refused_before_any_work(
    families: Callable[[str], Family], spec: str, said: str
) -> None:
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    specs = PhotoAttackSpecs.load(AuditConfig(photo_attacks=[spec]), FACES, **prompts, allow_pickle=False)
    with pytest.raises(UserError, match=said):
        specs.check(families("sd15"), 20)


def test_an_attack_that_takes_more_photos_than_somebody_has_is_refused() -> None:
    settings = AuditConfig(photo_attacks=["img2img", "lora:num_photos=4"])
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    specs = PhotoAttackSpecs.load(settings, FACES, **prompts, allow_pickle=False)
    specs.check_photos({"s01": 4, "s02": 4})
    with pytest.raises(UserError, match='"lora:num_photos=4" takes 4 photos, and s02 has 3 for the attacker; lower'):
        specs.check_photos({"s01": 4, "s02": 3})


def test_new_protected_photos_leave_the_finished_attacks_on_the_clean_ones_as_they_are(tmp_path: Path):
    first, second = (CellStore(tmp_path / "cells", process=process) for process in (1, 2))
    for store, protected in ((first, PHOTOS), (second, PHOTOS + 0.1)):
        attack_photos(tmp_path / "gone.safetensors", store=store, protected=protected)
    assert processes(second, "photos", attack="dreambooth") == {"clean": 1, "protected": 2}


def test_other_attacks_on_the_photos_are_rows_and_pictures_of_their_own(tmp_path: Path):
    specs = ["lora:max_train_steps=1", "img2img:strength=0.5", "inpainting"]
    settings = {"photo_attacks": specs, "edit_prompt": "in a hat"}
    rows, pictures = attack_photos(tmp_path / "gone.safetensors", settings)
    for spec in specs:
        clean, protected = (row for row in rows if row.attack == spec)
        assert [clean.photos, protected.photos] == ["clean", "protected"]
        assert clean.status == "ok", clean.error
        assert clean.identity == protected.identity  # the same photos and draws
        assert clean.params.get("prompts") == (None if spec.startswith("lora") else ["in a hat"])
    places = {"lora_max_train_steps=1", "img2img_strength=0.5", "inpainting"}
    assert {f"layer/{place}/clean/s01/0" for place in places} < set(pictures)


class ByLength:
    """Scores a picture with the length of its prompt, so that a test sees which prompts were scored."""

    name = "by length"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def test_every_attack_draws_all_prompts_with_every_seed_and_measures_more_than_identity(tmp_path: Path):
    prompts = ["a photo of sks person", "sks person in a garden"]
    plain = ["a photo of a person", "person in a garden"]
    settings = {"prompts": prompts, "seeds": 2, "photo_attacks": ["img2img"]}
    store = CellStore(tmp_path / "cells")
    rows, pictures = attack_photos(ADAPTER, settings, store, clip=ByLength())
    assert [row.error for row in rows] == [None] * 12
    assert [(row.attack, row.photos, row.seed) for row in rows] == [
        (attack, photos, seed)
        for attack in ("dreambooth", "faceid", "img2img")
        for photos in ("clean", "protected")
        for seed in (0, 1)
    ]
    for row in rows:
        asked = prompts if row.attack == "dreambooth" else plain  # an attack without training knows no rare word
        assert list(row.by_prompt or {}) == asked
        seen = [by_encoder["portrait-a"].mean for by_encoder in (row.by_prompt or {}).values()]
        assert row.identity["portrait-a"].mean == pytest.approx(sum(seen) / 2)
        each = [score or 0.0 for score in (row.scores or {})["portrait-a"]]  # a picture for each prompt; None: no face
        assert each == pytest.approx(seen, abs=5e-5)  # scores have four digits
        edited = {"edit_similarity", "edit_lpips", "edit_direction"} if row.attack == "img2img" else set()
        assert set(row.quality or {}) == {"face_score", "similarity", "brisque", "clip"} | edited
        assert (row.quality or {})["clip"] == sum(map(len, plain)) / 2
        assert len(pictures[f"layer/{row.attack}/{row.photos}/s01/{row.seed}"]) == 2
        assert row.params.get("photo") == (row.seed if row.attack == "faceid" else None)
    first, second = (pictures[f"layer/dreambooth/clean/s01/{seed}"] for seed in (0, 1))
    assert not any(torch.equal(one, other) for one in first for other in second)
    again, _ = attack_photos(ADAPTER, settings, store, clip=ByLength())
    assert again == rows  # the finished cells, with the same seconds


def test_originals_that_an_audit_of_models_cannot_guess_are_asked_for(
    output: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--base", str(PIPELINE), "--hardened", str(output / "model"), "--subjects", str(people / "attacker")]
    words += ["--holdout_data_dir", str(people / "holdout"), "--strangers_data_dir", str(people / "strangers")]
    words += ["--protected_photos", str(output), "--output_dir", str(tmp_path / "out"), "--attacks", "dreambooth"]
    assert main(["audit", *words, "--resolution", "64"]) == 2
    missing = people / "attacker" / "protected"
    assert f"error: {missing} does not exist; give photos, the folder of the originals" in capsys.readouterr().err


def test_apdm_audit_attacks_protected_photos_as_the_main_job_does(output: Path, people: Path, tmp_path: Path):
    words = ["--base", str(PIPELINE), "--hardened", str(output / "model"), "--subjects", str(people)]
    words += ["--protected_photos", str(output), "--output_dir", str(tmp_path / "out"), "--attacks", "dreambooth"]
    words += ["--resolution", "64", "--seeds", "1", "--max_train_steps", "1", "--num_class_images", "4"]
    words += ["--num_images", "2", "--num_inference_steps", "2", "--num_threads", "1", "--show_photos", "true"]
    threads = torch.get_num_threads()
    assert main(["audit", *words]) == 1  # such pictures show nobody: nothing was shown to be protected
    torch.set_num_threads(threads)
    layer, shipped = (read_results(folder / "results.json").image_layer for folder in (tmp_path / "out", output))
    assert layer is not None and shipped is not None
    assert [(row.attack, row.photos, row.status) for row in layer.attacks] == [
        ("dreambooth", "clean", "ok"),
        ("dreambooth", "protected", "ok"),
    ]
    assert layer.photos == shipped.photos
    page = Page(tmp_path / "out" / "report.html")  # which was allowed to show them
    assert "Difference" in page.text("photos")
    assert any(name.startswith("original, photo 1 of") for name in page.values("alt"))


def test_photos_that_do_not_pair_off_are_bad_input(output: Path, people: Path, tmp_path: Path):
    originals = people / "protected"
    good = load_protected_photos(originals, output, 64, known=["s01"])
    assert list(good.pairs) == ["s01"] and good.perturbation.method == "dladiff"
    with pytest.raises(UserError, match='subject "attacker" has photos in the inner folder'):
        load_protected_photos(originals, people, 64, known=["s01"])
    with pytest.raises(UserError, match="no hold-out photos of .*o01"):
        load_protected_photos(people / "other", output, 64, known=["s01"])
    shutil.copytree(output, tmp_path / "copy")
    (tmp_path / "copy/images/s01/000.png").unlink()
    with pytest.raises(UserError, match="not photos of equal names"):
        load_protected_photos(originals, tmp_path / "copy", 64, known=["s01"])
    (tmp_path / "copy/perturbation.json").write_text('{"method": "dladiff"}')
    with pytest.raises(UserError, match="perturbation.json was not written by this version: schema is missing"):
        load_protected_photos(originals, tmp_path / "copy", 64, known=["s01"])
    (tmp_path / "copy/perturbation.json").unlink()
    with pytest.raises(UserError, match="has no perturbation.json that can be read: it is not complete"):
        load_protected_photos(originals, tmp_path / "copy", 64, known=["s01"])


@pytest.mark.parametrize(
    ("settings", "identifier", "said"),
    [
        ({"purifiers": ["jpg"]}, "sks", 'no purifier "jpg"'),
        ({"purifiers": ["diffusion:strength=2"]}, "sks", "strength is 2; it needs to be at most 1"),
        ({"purifiers": ["mix", "flip", "mix:clean=1"]}, "sks", 'purifiers "mix" and "mix:clean=1" are the same'),
        ({"purifiers": ["flip", "flip"]}, "sks", 'the purifier "flip" is given twice; leave one of them out'),
        ({"photo_attacks": ["lora", "lora:rank=4"]}, "sks", 'the attacks "lora" and "lora:rank=4" are the same'),
        (
            {"photo_attacks": ["dreambooth:steps_factor=1"]},
            "sks",
            'attacks "dreambooth" and "dreambooth:steps_factor=1" a',
        ),
        ({"photo_attacks": ["img2img", "img2img"]}, "sks", 'the attack "img2img" is given twice'),
        ({"photo_attacks": ["faceid"]}, "sks", '"faceid" runs by itself where faceid_adapter is given'),
        ({"photo_attacks": ["lara"]}, "sks", 'no attack "lara"; did you mean "lora"'),
        ({"photo_attacks": ["transplant:source=sibling,part=vae"]}, "sks", "leave it out of photo_attacks"),
        ({"photo_attacks": ["textual_inversion"]}, "my sks", 'no identifier in "a photo of my sks person"'),
    ],
)
def test_attacks_on_photos_that_cannot_be_run_are_bad_input(settings: dict[str, Any], identifier: str, said: str):
    prompts = {"instance_prompt": f"a photo of {identifier} person", "class_prompt": "a photo of person"}
    with pytest.raises(UserError, match=said):
        PhotoAttackSpecs.load(AuditConfig(**settings), FACES, **prompts, allow_pickle=False)


def hardening(people: Path, *words: str) -> HardenConfig:
    folders = {"instance_data_dir": "protected", "audit.attack_data_dir": "attacker"}
    folders |= {f"audit.{name}_data_dir": name for name in ("holdout", "other", "strangers")}
    paths = [text for key, name in folders.items() for text in (f"--{key}", str(people / name))]
    return load_config(HardenConfig, ["--config", "configs/portrait.yaml", *paths, *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--audit.purifiers", "flip"], "audit.purifiers is for protected photos"),
        (["--audit.photo_attacks", "lora"], "set image_layer.enabled to true"),
        (["--audit.attack_options", "lora:rate=1"], 'lora has no option "rate"'),
    ],
)
def test_attacks_that_cannot_be_run_are_refused_before_the_hardening(words: list[str], said: str, people: Path):
    config = hardening(people, "--audit.enabled", "true", "--image_layer.enabled", "false", *words)
    with pytest.raises(UserError, match=said):
        load_audit_inputs(config, FACES)


def test_an_audit_that_cannot_pass_is_said_before_the_hardening(people: Path, caplog: pytest.LogCaptureFixture):
    load_audit_inputs(hardening(people, "--audit.enabled", "true"), FACES)
    assert caplog.messages == []
    load_audit_inputs(hardening(people, "--audit.enabled", "true", "--audit.min_cost_factor", "3"), FACES)
    (message,) = caplog.messages
    assert message.startswith("audit.max_train_steps = 1400 is 2 times the nominal attack's 700 steps")
    assert 'so the verdict can hardly be "protected"' in message  # it is measured before the nominal step too


def test_an_attack_that_a_signal_stops_is_not_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photo_attacks, "check_finite", lambda images: stopped_in_a_library())
    store = CellStore(tmp_path / "cells")
    with pytest.raises(Interrupted), stop_on_signals():
        attack_photos(tmp_path / "gone.safetensors", store=store)
    assert processes(store, "attack", status="failed") == {}


def test_an_attack_that_fails_is_a_row_that_says_so_and_the_others_go_on(tmp_path: Path):
    rows, pictures = attack_photos(tmp_path / "gone.safetensors")
    assert [row.status for row in rows] == ["ok", "ok", "failed", "failed"]
    assert "gone.safetensors does not exist" in (rows[2].error or "") and rows[2].identity == {}
    assert sorted(pictures) == ["layer/dreambooth/clean/s01/0", "layer/dreambooth/protected/s01/0"]
    # The same photos and draws: the rows are paired.
    assert rows[0].identity == rows[1].identity
