"""`apdm attack`: what an audit's cell gives, for one model alone, and bad input that is refused before the work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_run import options, words, write_people
from changed_copy import changed_copy
from diffusers import DiffusionPipeline
from html_page import Page
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import apdm
from apdm.attacks import Material
from apdm.attacks.registry import make
from apdm.cli import main
from apdm.config import AttackConfig, make_config
from apdm.core import disk
from apdm.export.attacked import export_attacked
from apdm.export.leaks import scan_for_leaks
from apdm.export.pipeline import export_size
from apdm.families import load_family
from apdm.families.encoding import encode_images
from apdm.jobs.attack import warn_of_options_without_effect
from apdm.jobs.common.base_model import check_resolution
from apdm.portraits.subjects import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("photos"))


def test_squares_much_larger_than_the_models_own_are_told(
    tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = load_family(tiny_pipeline)
    own = family.denoiser.config.sample_size * family.vae_scale
    check_resolution(family, 2 * own)
    assert not caplog.text
    check_resolution(family, 8 * own)
    assert f"give --resolution {own}" in caplog.text


def test_an_option_that_no_attack_takes_is_told_with_what_to_write(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    given = options(Path("model"), Path("people"), Path("out"), attack=["lora"])
    warn_of_options_without_effect(make_config(AttackConfig, given))
    assert "--max_train_steps 4 has no effect" in caplog.text and "lora:max_train_steps=4" in caplog.text
    assert "lora:learning_rate=0.001" in caplog.text and "lora:train_batch_size=2" in caplog.text
    caplog.clear()
    own = tmp_path / "mine.py"
    own.write_text("from apdm.attacks.lora import LoRA\n\nclass Mine(LoRA):\n    pass\n")
    for given_options, mended in (("", ":max_train_steps=4"), (":rank=2", ":rank=2,max_train_steps=4")):
        spec = f"{own}:Mine{given_options}"
        warn_of_options_without_effect(make_config(AttackConfig, {**given, "attack": [spec]}))
        assert f"write it into the attack: {own}:Mine{mended}" in caplog.text
        caplog.clear()
    warn_of_options_without_effect(make_config(AttackConfig, {**given, "attack": ["lora:max_train_steps=7"]}))
    assert "lora:max_train_steps=7 says its own" in caplog.text
    caplog.clear()
    for attacks in (["lora:rank=2", "dreambooth:learning_rate_factor=3"], ["release_unconditional"]):
        warn_of_options_without_effect(make_config(AttackConfig, {**given, "attack": attacks}))
    assert not caplog.text


@pytest.fixture(scope="module")
def attacked(tiny_pipeline: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> apdm.AttackResult:
    output = tmp_path_factory.mktemp("attacked") / "out"
    return apdm.attack(**options(tiny_pipeline, photos, output, save_model=True))


def test_the_attacked_model_does_not_say_how_the_person_looks(
    tiny_pipeline: Path, photos: Path, tmp_path: Path
) -> None:
    spec = "lora:rank=2,max_train_steps=1,description=with red hair"
    done = apdm.attack(**options(tiny_pipeline, photos, tmp_path / "out", attack=[spec], save_model=True))
    assert done.models_dir is not None
    files = [path for path in done.models_dir.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files]
    assert any(b"lora:rank=2,max_train_steps=1,description" in text for text in texts)
    assert not any(b"red hair" in text for text in texts)


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what no two runs share, and without what an audit adds when it has compared its models."""
    left_out = ("seconds", "train_seconds", "steps_to_match", "unreliable")
    return {key: value for key, value in row.items() if key not in left_out}


def cells(output: Path) -> dict[str, bytes]:
    """The pictures of the finished cells in an output folder."""
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in sorted(output.glob("cells/*/*.png"))}


def test_it_gives_bit_for_bit_what_the_cell_of_an_audit_gives(
    attacked: apdm.AttackResult, tiny_pipeline: Path, photos: Path, tmp_path: Path
) -> None:
    hardened = changed_copy(tiny_pipeline, tmp_path / "hardened")
    given = options(tiny_pipeline, photos, tmp_path / "audit", eval_steps=[1, 2, 3], seeds=1)
    models = {"base": given.pop("pretrained_model_name_or_path"), "hardened": str(hardened)}
    apdm.audit(**models, subjects=given.pop("photos"), attacks=given.pop("attack"), **given)
    theirs = json.loads((tmp_path / "audit/results.json").read_text())
    (row,) = json.loads((attacked.output_dir / "attack.json").read_text())["attacks"]
    assert row["status"] == "ok" and [point["step"] for point in row["curve"]] == [0, 1, 2, 3, 4]
    assert lasting(row) == lasting(next(one for one in theirs["attacks"] if one["model"] == "base"))
    # Even the keys of the cells are equal. So an audit takes over what an attack has done, and the other way round.
    ours, audited = cells(attacked.output_dir), cells(tmp_path / "audit")
    assert ours and all(audited[name] == picture for name, picture in ours.items())


def test_it_leaves_a_page_a_drawing_and_the_pictures(attacked: apdm.AttackResult) -> None:
    output = attacked.output_dir
    page = Page(output / "report.html")
    assert "lora:rank=2,max_train_steps=4,learning_rate=1e-2 on s01" in page.text()
    assert "2 held-out photos" in page.text() and "says nothing about protection" in page.text()
    drawing = Page(output / "likeness.svg")
    assert drawing.tags[0][0] == "svg" and sum(tag == "polyline" for tag, _ in drawing.tags) == 2  # an encoder each
    assert [values["class"] for tag, values in page.tags if tag == "polyline"] == ["line-1"] * 2
    assert "var(" not in (output / "likeness.svg").read_text()  # other programs than browsers know no such names
    (folder,) = output.glob("pictures/lora_*/s01")
    with Image.open(folder / "after.png") as after, Image.open(folder / "course.png") as course:
        # Four pictures side by side; and a column for each step, with a line for each noise.
        assert after.size == (4 * 24, 24) and course.size == (5 * 24, 2 * 24)
    assert sum(value.startswith("data:image/png") for value in page.values("src")) == 4 + 5 * 2


def test_the_attacked_model_is_kept_on_request_and_says_what_it_is(attacked: apdm.AttackResult) -> None:
    (folder,) = attacked.output_dir.glob("attacked_models/lora_*/s01")
    assert "output of an attack" in (folder / "README.md").read_text()
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert not any("lora" in name for name, _ in pipeline.unet.named_parameters())


@pytest.mark.parametrize(
    "spec", ["lora:rank=2,train_text_encoder=true", "lora:rank=2,use_dora=true", "textual_inversion", "dreambooth"]
)
def test_a_kept_model_is_the_attacked_model(spec: str, families: Any, tmp_path: Path) -> None:
    family = families("sd15")
    photos = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_images(family, photos, batch_size=2)
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    attack = make(spec, **prompts, prior_loss_weight=0.0, max_train_steps=2, learning_rate=0.1)
    attacked = attack.run(family, Material(latents, photos=photos)).model
    export_attacked(attacked, tmp_path / "model", attack=spec, base="0" * 64, cell="1")
    loaded = type(family)(DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True))
    prompt = attack.prompt("a photo of sks person")
    told = [model.encode_prompts([prompt]) for model in (attacked, loaded, family)]
    assert torch.allclose(told[0], told[1], atol=1e-5)
    noisy = torch.randn(1, *latents.mean.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs, before = (
            model.predict(model.denoiser, noisy, torch.tensor([9]), one)
            for model, one in zip((attacked, loaded, family), (told[0], told[1], told[0]), strict=True)
        )
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert spec == "textual_inversion" or not torch.allclose(ours, before, atol=1e-3)


def test_the_same_call_does_nothing_again_unless_a_model_is_missing(
    attacked: apdm.AttackResult, tiny_pipeline: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = attacked.output_dir
    before, told = cells(output), (output / "attack.json").read_text()
    argv = ["attack", *words(options(tiny_pipeline, photos, output, save_model="true"))]
    assert main(argv) == 0
    again = json.loads((output / "attack.json").read_text())
    assert again["attacks"] == json.loads(told)["attacks"]  # with the times that it took then
    said = capsys.readouterr().out
    for text in ("step  portrait-a  matches", "by chance (portrait-a / portrait-b)", str(output / "report.html")):
        assert text in said
    shutil.rmtree(output / "attacked_models")
    assert main(argv) == 0
    assert len(list(output.glob("attacked_models/*/s01/README.md"))) == 1 and cells(output) == before
    rows = [json.loads(text)["attacks"] for text in ((output / "attack.json").read_text(), told)]
    assert rows[0] != rows[1] and [lasting(row) for row in rows[0]] == [lasting(row) for row in rows[1]]


def test_kept_models_are_those_of_the_attacks_in_the_results(tiny_pipeline: Path, photos: Path, tmp_path: Path) -> None:
    one, other = "lora:rank=1,max_train_steps=1", "lora:rank=2,max_train_steps=1"
    given = options(tiny_pipeline, photos, tmp_path / "out", overwrite_output_dir=True)

    def models(**changes: Any) -> dict[str, bytes]:
        apdm.attack(**given | changes)
        found = sorted(tmp_path.glob("out/attacked_models/*/s01/unet/*.safetensors"))
        return {path.parents[2].name: path.read_bytes() for path in found}

    first = models(attack=[one, other], save_model=True)
    assert len(first) == 2
    assert models(attack=[one], seed=6) == {}  # a model of seed 5 is not that of this attack
    (name,) = again = models(attack=[one], seed=6, save_model=True)
    assert again[name] != first[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": ["lorra:rank=32"]}, "lorra"),
        ({"attack": ["lora:ranc=32"]}, "ranc"),
        ({"attack": ["lora:rank=0"]}, "rank"),
        ({"attack": ["lora", "lora"]}, "given twice"),
        ({"attack": ["transplant:source=sibling,part=vae"]}, "needs a sibling model beside the attacked one"),
        ({"attack": ["stranger_first"]}, "put photos of people who consent into consenting/<id>/"),
        ({"attack": ["two_stage:attack=stranger_first"]}, "put photos of people who consent into consenting/<id>/"),
        ({"attack": ["expert_swap"], "save_model": True}, "leave out save_model"),
        ({"attack": ["lora:num_inference_steps=5000"]}, "timesteps"),
        ({"attack": ["lora:min_timestep=0.5,max_timestep=0.5001"]}, "no timestep lies between min_timestep=0.5"),
        (
            {"attack": ["lora:num_photos=9"]},
            '"lora:num_photos=9" takes 9 photos, and s01 has 4 for the attacker; lower',
        ),
        ({"attack": ["two_stage:attack=lora,num_photos=5"]}, "takes 5 photos, and s01 has 4 for the attacker"),
        ({"photos": "nowhere"}, "nowhere does not exist"),
        ({"pretrained_model_name_or_path": "./nowhere"}, "./nowhere: no such folder or file"),
        ({"resolution": 20}, "multiple of"),
        ({"instance_prompt": "a photo of person"}, "a photo of"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    changes: dict[str, Any],
    message: str,
    tiny_pipeline: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = options(tiny_pipeline, photos, tmp_path / "out", **changes)
    assert main(["attack", *words(values)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and message in errors[0], errors
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    attacked: apdm.AttackResult, tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = options(tiny_pipeline, photos, tmp_path / "out")
    assert main(["attack", *words(values), "--dry_run"]) == 0
    said = capsys.readouterr()
    for name in ("attacks", "faces seen", "device memory", "work", "drawn", "disk"):
        assert f"apdm: {name}  " in said.err
    assert "5 copies of the denoiser" in said.err and "3 class pictures of the model" in said.err
    assert said.out == "dry run: everything that the run needs is there; nothing was written\n"
    result = apdm.attack(**values, dry_run=True)
    assert result.output_dir == tmp_path / "out" and result.results is None and not result.failed
    assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in attacked.output_dir.rglob("*")}
    finished = options(tiny_pipeline, photos, attacked.output_dir, save_model="true")
    assert main(["attack", *words(finished), "--dry_run"]) == 0  # the same options: the same command goes on
    assert main(["attack", *words(finished | {"seed": 6}), "--dry_run"]) == 2
    assert "overwrite_output_dir" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in attacked.output_dir.rglob("*")} == before


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_disk_without_room_for_the_attacked_models_is_told_before_the_work(
    tiny_pipeline: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dry_run: bool,
) -> None:
    model = export_size(load_family(tiny_pipeline))
    monkeypatch.setattr(disk, "free_space", lambda path: 3 * model // 2)  # of two attacked models
    attacks = [f"lora:rank={rank},max_train_steps=4" for rank in (1, 2)]
    values = options(tiny_pipeline, photos, tmp_path / "out", attack=attacks, save_model=True, dry_run=dry_run)
    assert main(["attack", *words(values)]) == 2
    assert re.search("out needs .* [(]pictures .*, attacked models .*[)] and its disk has", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert main(["attack", *words({**values, "attack": attacks[:1]})]) == 0


def test_a_dry_run_lists_all_that_is_wrong(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").write_text("mine")
    absent = {"strangers_data_dir": str(tmp_path / "nobody"), "encoders": "absent.onnx", "judge": "dino:./nodino"}
    values = options(tmp_path / "no-model", photos, tmp_path / "out", attack=["lora", "lora"], **absent)
    assert main(["attack", *words(values), "--dry_run"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    wrong = ["no-model", "nobody", "absent.onnx", "nodino", '"lora" is given twice', "out holds files"]
    for part in wrong:
        assert sum(part in line for line in errors) == 1, (part, errors)
    assert len(errors) == len(wrong) and [path.name for path in (tmp_path / "out").iterdir()] == ["note.txt"]


def test_too_few_photos_are_refused(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(3, range(3), tmp_path / "few/s01", 48)
    write_photos(9, range(2), tmp_path / "strangers", 48)
    values = options(tiny_pipeline, tmp_path / "few", tmp_path / "out")
    assert main(["attack", *words(values)]) == 2
    assert "s01" in capsys.readouterr().err


def test_an_attack_that_fails_is_told_and_the_others_run(
    tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = [
        "dreambooth:learning_rate=1e30,max_train_steps=2,prior_loss_weight=0",
        "lora:max_train_steps=1",
    ]
    values = options(tiny_pipeline, photos, tmp_path / "out", attack=attacks)
    model = values.pop("pretrained_model_name_or_path")
    assert main(["attack", model, *words(values)]) == 1
    rows = json.loads((tmp_path / "out/attack.json").read_text())["attacks"]
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert f"{attacks[0]} on s01  failed: " in capsys.readouterr().out
    assert "The attack failed" in Page(tmp_path / "out/report.html").text()


def test_the_page_is_made_again_as_it_was_and_says_what_is_missing(
    attacked: apdm.AttackResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(attacked.output_dir, tmp_path / "out"))
    made = ("report.html", "likeness.svg")
    before = {name: (output / name).read_bytes() for name in made}
    for given in (output, output / "attack.json"):
        for name in made:
            (output / name).unlink()
        assert main(["report", str(given)]) == 0
        assert {name: (output / name).read_bytes() for name in made} == before
    assert apdm.report(results=str(output)).missing == ()
    (output / "likeness.svg").unlink()
    (sheet,) = output.glob("pictures/*/s01/course.png")
    sheet.write_bytes(b"no picture")
    capsys.readouterr()
    assert main(["report", str(output), "--output", str(tmp_path / "pages/page.html")]) == 0
    assert "missing pictures  1 of 2 sheets" in capsys.readouterr().out
    page = Page(tmp_path / "pages/page.html")
    assert page.values("href")[-1] == "../out/attack.json" and len(page.values("src")) == 4
    assert "The pictures of the course are missing" in page.text()
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["page.html"]
    assert not (output / "likeness.svg").exists()  # beside the attack's own page alone


def test_pictures_of_a_page_are_not_taken_from_elsewhere(attacked: apdm.AttackResult, tmp_path: Path) -> None:
    output = Path(shutil.copytree(attacked.output_dir, tmp_path / "out"))
    (folder,) = output.glob("pictures/*/s01")
    shutil.move(folder, tmp_path / "private")
    content = json.loads((output / "attack.json").read_text())
    content["attacks"][0]["subject"] = "../../../private"
    (output / "attack.json").write_text(json.dumps(content))
    assert len(apdm.report(results=str(output)).missing) == 2


@pytest.mark.parametrize(("changes", "said"), [({"attacks": []}, "do not fit together"), ({"photos": 3}, "photos")])
def test_what_is_no_attack_gives_no_page(
    changes: dict[str, Any], said: str, attacked: apdm.AttackResult, tmp_path: Path
) -> None:
    content = json.loads((attacked.output_dir / "attack.json").read_text())
    (tmp_path / "attack.json").write_text(json.dumps(content | changes))
    with pytest.raises(apdm.UserError, match=said):
        apdm.report(results=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["attack.json"]


def test_a_tracker_gets_the_curve_and_the_pictures_only_if_asked_for(
    attacked: apdm.AttackResult, tiny_pipeline: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(attacked.output_dir / "cells", tmp_path / "done/cells")
    (row,) = json.loads((attacked.output_dir / "attack.json").read_text())["attacks"]
    tag = f"likeness/{row['spec']}/base/portrait-a"
    given = options(tiny_pipeline, photos, output, reuse_audits=[str(tmp_path / "done")], report_to="tensorboard")
    for people in (False, True):  # the tracker's options are not of the attack: the same attack goes on
        apdm.attack(**given, report_people=people, logging_dir=f"logs{people}")
        read = EventAccumulator(str(output / f"logs{people}/apdm"), size_guidance={"images": 0, "scalars": 0}).Reload()
        points = [(one.step, pytest.approx(one.value)) for one in read.Scalars(tag)]
        assert points == [(point["step"], point["identity"]["portrait-a"]["mean"]) for point in row["curve"]]
        shown = {name.rpartition("/s01/")[2] for name in read.Tags()["images"]}
        assert shown == ({"after", "course"} if people else set())
        files = [path for path in (output / f"logs{people}").rglob("*") if path.is_file()]
        assert files and people == any(scan_for_leaks(path, ["s01"]) for path in files)
        assert not any(scan_for_leaks(path, [str(tmp_path), "t@t"]) for path in files)


def test_an_attack_is_no_audit_to_compare(attacked: apdm.AttackResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(attacked.output_dir), str(attacked.output_dir / "attack.json")]) == 2
    error = capsys.readouterr().err
    assert "attack.json is of attacks on one model, which were compared with nothing" in error
