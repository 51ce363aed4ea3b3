"""What TensorBoard and Weights & Biases get from a run, read back from the files that they wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_results import make_results, picture
from tiny_run import arguments, write_people

from apdm.audit import read_results
from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.cli import main
from apdm.core.errors import UserError
from apdm.core.pictures import save_png
from apdm.distributed.trackers import Tracker
from apdm.export.leaks import scan_for_leaks
from apdm.image_layer.results import EncoderCosine, Perturbation, ProtectedFace, ProtectedPhoto
from apdm.jobs.common.tracked import (
    audit_figures,
    likeness_curves,
    names_without_words,
    photo_figures,
    track_attack,
    track_audit,
)
from apdm.metrics.perception import Visibility

ROOT = Path(__file__).parents[3]
RESULTS = from_json(Results, make_results(), "results")
PICTURES = {
    name: [picture(1), picture(2)]
    for name in ("class/base", "class/hardened", "attack/base/s01/3", "attention/attack/base/s01/3", "photos/s01")
} | {f"course/attack/{model}/s02/{seed}": [picture(3)] * 4 for model in ("base", "hardened") for seed in (3, 4)}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def events(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "apdm"), size_guidance={"images": 0, "scalars": 0})
    return read.Reload()


@pytest.mark.parametrize("shows_people", [False, True])
def test_an_audits_curves_and_pictures_are_in_the_event_files_and_people_only_if_asked_for(
    tmp_path: Path, shows_people: bool
) -> None:
    PartialState()
    page = tmp_path / "report.html"
    page.write_text("the page")
    with Tracker("tensorboard", tmp_path / "logs", shows_people=shows_people) as tracker:
        track_audit(tracker, RESULTS, PICTURES, page)
    read = events(tmp_path / "logs")
    curve = read.Scalars("likeness/dreambooth/hardened/enc-a")
    assert [(one.step, round(one.value, 4)) for one in curve] == [(0, 0.1), (100, 0.25), (200, 0.3), (300, 0.3)]
    assert read.Scalars("audit/protected")[0].value == 1
    assert read.Scalars("audit/match_rate")[0].value == pytest.approx(0.0123)
    shown = {tag for tag in read.Tags()["images"]}
    assert {tag.removeprefix("audit/") for tag in shown} == (
        {name for name in PICTURES if not name.startswith("course/")} | {"strips/dreambooth"}
        if shows_people
        else {"class/base", "class/hardened"}
    )
    picture = read.Images("audit/class/base")[0]
    assert picture.width >= 2 * 16 and picture.height >= 16
    files = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert files and shows_people == any(scan_for_leaks(path, ["s01"]) for path in files)
    assert not any(scan_for_leaks(path, [str(tmp_path), "zwx", "Few match"]) for path in files)


def test_a_curve_is_the_mean_over_protected_people_alone() -> None:
    curves = likeness_curves(RESULTS)
    assert set(curves) == {f"likeness/dreambooth/{model}/enc-a" for model in ("base", "hardened")}
    assert curves["likeness/dreambooth/base/enc-a"] == [(0, pytest.approx(0.1)), (100, pytest.approx(0.75))]


def test_the_names_of_attacks_say_nothing_of_how_somebody_looks() -> None:
    red, grey = ("lora:description=with " + hair + " hair,rank=4" for hair in ("red", "short grey"))
    edit = "diffedit:source_prompt=a photo of a woman,strength=0.5"
    assert names_without_words([red, grey, edit, "dreambooth:photos=diffusion/prompt=a red beard", "lora:rank=4"]) == {
        red: "lora:description,rank=4",
        grey: "lora:description,rank=4 2",
        edit: "diffedit:source_prompt,strength=0.5",
        "dreambooth:photos=diffusion/prompt=a red beard": "dreambooth:photos=diffusion/prompt",
        "lora:rank=4": "lora:rank=4",
    }
    content = make_results()
    for row in content["attacks"]:
        row["spec"] = red
    curves = likeness_curves(from_json(Results, content, "results"))
    assert set(curves) == {f"likeness/lora:description,rank=4/{model}/enc-a" for model in ("base", "hardened")}


def test_what_attacks_on_photos_reach_is_a_mean_over_people_and_seeds() -> None:
    """The likeness from photos in the README; and of two people, one after a purifier."""
    results = cast(Results, read_results(ROOT / "benchmarks/results/demo.json"))
    layer = results.image_layer
    assert layer is not None
    figures = audit_figures(results)
    read = {
        name.removeprefix("likeness/photos/"): round(value, 2)
        for name, value in figures.items()
        if name.startswith("likeness/photos/")
    }
    assert read == {
        "dreambooth/clean/portrait-a": 0.86,
        "dreambooth/clean/portrait-b": 0.93,
        "dreambooth/protected/portrait-a": 0.16,
        "dreambooth/protected/portrait-b": 0.72,
        "faceid/clean/portrait-a": 0.73,
        "faceid/clean/portrait-b": 0.84,
        "faceid/protected/portrait-a": 0.23,
        "faceid/protected/portrait-b": 0.46,
    }
    assert figures["audit/protected"] == 0 and figures["audit/cost_factor"] == pytest.approx(1.24, abs=0.01)
    one = next(row for row in layer.attacks if row.photos == "protected")
    entry = one.identity["portrait-a"]
    rows = [replace(one, identity={"portrait-a": replace(entry, mean=mean)}) for mean in (0.1, 0.4, 0.6)]
    rows[2] = replace(rows[2], purifier="diffusion:prompt=a red beard")
    figures = audit_figures(replace(results, image_layer=replace(layer, attacks=rows)))
    assert figures["likeness/photos/dreambooth/protected/portrait-a"] == pytest.approx(0.25)
    assert figures["likeness/photos/dreambooth/protected after diffusion:prompt/portrait-a"] == 0.6


def test_figures_of_protected_photos_are_means_without_what_was_not_measured() -> None:
    def protected(psnr: float, cosines: dict[str, float]) -> ProtectedPhoto:
        visible = Visibility(linf=0.1, psnr=psnr, ssim=None, lpips=None, ciede2000_mean=1.0, ciede2000_p95=2.0)
        cosine = {name: EncoderCosine(to_original=value, threshold=0.3) for name, value in cosines.items()}
        face = ProtectedFace(visible=visible, cosine=cosine)
        return ProtectedPhoto(subject="s01", photo=0, visible=visible, faces=[face] * bool(cosines))

    photos = [protected(30.0, {"a": 0.2, "b": 0.5}), protected(34.0, {"a": 0.4}), protected(35.0, {})]
    plain = {"schema": 1, "package": {}, "method": "none", "zero_shot": True, "format": "png", "epsilon": {}}
    figures = Perturbation(**plain, photos=photos, command=None, seconds_per_photo=None, peak_memory_bytes=None)
    assert photo_figures(figures) == {
        "photos/number": 3.0,
        "photos/linf": pytest.approx(0.1),
        "photos/psnr": 33.0,
        "photos/ciede2000_mean": 1.0,
        "photos/ciede2000_p95": 2.0,
        "photos/cosine to original/a": pytest.approx(0.3),
        "photos/cosine to original/b": 0.5,
    }


@pytest.mark.parametrize("shows_people", [False, True])
def test_an_attack_on_one_model_shows_people_only_if_asked_for(tmp_path: Path, shows_people: bool) -> None:
    PartialState()
    save_png(picture(1), sheet := tmp_path / "after.png")
    with Tracker("tensorboard", tmp_path / "logs", shows_people=shows_people) as tracker:
        track_attack(tracker, cast(Any, RESULTS), {"lora/s01/after": sheet}, tmp_path / "report.html")
    read = events(tmp_path / "logs")
    assert read.Tags()["images"] == ["attack/lora/s01/after"] * shows_people
    assert [one.step for one in read.Scalars("likeness/dreambooth/base/enc-a")] == [0, 100]


WANDB = """
import json, pathlib
class Image:
    def __init__(self, picture): self.size = picture.size
class Html:
    def __init__(self, text, inject): self.text = text
def plain(value):
    if isinstance(value, list): return ["picture"] * len(value)
    return value.text if isinstance(value, Html) else value
class Run:
    def __init__(self, folder): self.file = pathlib.Path(folder) / "calls.json"; self.calls = []
    def log(self, values, step=None): self.calls.append([{k: plain(v) for k, v in values.items()}, step])
    def define_metric(self, name, step_metric): self.calls.append([{"axis of " + name: step_metric}, None])
    def finish(self, exit_code=0): self.file.write_text(json.dumps([self.calls, exit_code]))
def init(*, project, settings, dir):
    assert settings["console"] == "off"
    return Run(dir)
"""
SCRIPT = """
import sys, json, pathlib
sys.path[:0] = [{helpers!r}, {here!r}]
from accelerate import PartialState
import test_tracked as t
PartialState()
folder = pathlib.Path({folder!r})
(folder / "report.html").write_text("the page")
for people in (False, True):
    with t.Tracker("wandb", folder / f"logs-{{people}}", shows_people=people) as tracker:
        tracker.numbers({{"loss": 1.0}}, 7)
        t.track_audit(tracker, t.RESULTS, t.PICTURES, folder / "report.html")
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an audit was tracked by Weights & Biases: a real file with the calls of the real package that are used."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "site/wandb").mkdir(parents=True)
    (folder / "site/wandb/__init__.py").write_text(WANDB)
    here = Path(__file__).parent
    code = SCRIPT.format(helpers=str(here.parents[1] / "helpers"), here=str(here), folder=str(folder))
    environment = {"PYTHONPATH": f"{folder / 'site'}:{here.parents[2]}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("shows_people", [False, True])
def test_weights_and_biases_gets_the_attacks_steps_as_an_axis_of_their_own(tracked: Path, shows_people: bool) -> None:
    calls, code_at_end = json.loads((tracked / f"logs-{shows_people}/calls.json").read_text())
    assert code_at_end == 0 and calls[0] == [{"loss": 1.0}, 7]
    assert all(step is None for _, step in calls[1:])  # a step lower than 7 would be dropped
    assert [{"axis of likeness/dreambooth/base/enc-a": "attack step"}, None] in calls
    steps = [values["attack step"] for values, _ in calls if "attack step" in values]
    assert steps == [0, 100, 200, 300]
    names = {name for values, _ in calls for name in values}
    assert ("audit/attack/base/s01/3" in names) == ("audit/report" in names) == shows_people
    assert "audit/class/base" in names


def test_a_tracker_that_fails_after_an_audit_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    PartialState()

    def fail(*args: object, **more: object) -> None:
        raise ConnectionError("the service is gone\nmore")

    with Tracker("tensorboard", tmp_path / "logs", shows_people=False) as tracker:
        monkeypatch.setattr(tracker._tracker, "log", fail)
        track_audit(tracker, RESULTS, PICTURES, tmp_path / "report.html")
    assert (
        f"did not take everything (ConnectionError: the service is gone); all results are in {tmp_path}" in caplog.text
    )


def test_pictures_and_figures_of_the_validation_go_to_the_tracker_without_prompts_and_people(
    make_pipeline: Callable[..., Path], people: Path, tmp_path: Path
) -> None:
    pipeline = make_pipeline("epsilon")
    output = tmp_path / "run"
    options: dict[str, object] = {
        "validation.steps": 1,
        "validation.num_images": 2,
        "validation.num_inference_steps": 2,
        "validation.probe_steps": 1,
        "audit.holdout_data_dir": people / "holdout",
        "audit.enabled": "false",
        "max_train_steps": 2,
        "report_to": "tensorboard",
        "logging_dir": "tb",
    }
    assert main(["harden", *arguments(pipeline, people, output, **options)]) == 0
    read = events(output / "tb")
    assert {"validation/prompt 1", "validation/prompt 2"} == set(read.Tags()["images"])
    assert [one.step for one in read.Images("validation/prompt 2")] == [1, 2]
    for name in ("instance_loss", "probe_likeness/portrait-a", "probe_face_rate"):
        assert [one.step for one in read.Scalars(name)] == [1, 2]
    assert main(["verify", str(output)]) == 0  # the folder of the logs is a working file, whatever its name
    assert not scan_for_leaks(output / "tb", ["sks", "photo of", str(people)])


def test_people_are_not_shown_to_no_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("harden", "perturb"):
        words = ["--pretrained_model_name_or_path", "x", "--instance_data_dir", "x", "--output_dir", str(tmp_path)]
        assert main([command, "--report_people", *words]) == 2
        assert "name it with report_to" in capsys.readouterr().err
    assert main(["audit", "--report_people", "--output_dir", str(tmp_path)]) == 2
    assert "name it with report_to" in capsys.readouterr().err
    assert main(["attack", "x", "--report_people", "--photos", "x", "--output_dir", str(tmp_path)]) == 2
    assert "name it with report_to" in capsys.readouterr().err


def test_a_tracker_can_fail_to_start() -> None:
    PartialState()
    with pytest.raises(UserError, match="report_to tensorboard cannot start"):
        Tracker("tensorboard", Path(__file__) / "logs", shows_people=False)


def test_a_tracker_that_cannot_log_is_refused_before_any_work(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(output: Path, **changes: object) -> int:
        return main(["harden", *arguments(tiny_pipeline, people, output, **changes)])

    def last_line() -> str:
        return capsys.readouterr().err.strip().splitlines()[-1]

    if importlib.util.find_spec("wandb") is None:
        assert run(tmp_path / "run", report_to="wandb") == 2
        assert (
            'report_to wandb needs the package wandb, which is not installed; install it with pip install "apdm['
            in (last_line())
        )
        assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "run", report_to="tensorboard", logging_dir=tmp_path / "file") == 2
    assert "report_to tensorboard cannot start (NotADirectoryError" in last_line()
    assert not (tmp_path / "run/class_images").exists()


TRACKERS = """
from pathlib import Path
from accelerate import PartialState
from apdm.core.errors import UserError
from apdm.distributed.trackers import Tracker, require_tracker
PartialState()
start = lambda: Tracker("wandb", Path(FOLDER), shows_people=False)
for start in (start, lambda: require_tracker("comet_ml")):
    try:
        start()
    except UserError as error:
        print(error)
"""


def test_what_a_trackers_package_raises_is_one_line(tmp_path: Path) -> None:
    """The two packages are real files that fail as the real ones do without a login or with a broken installation."""
    packages = {
        "wandb": "def init(*, project, settings, dir):\n"
        "    assert settings['console'] == 'off' and settings['x_disable_meta'], 'words of the run would be uploaded'\n"
        "    raise RuntimeError('api_key not configured\\nmore')\n"
    }
    packages["comet_ml"] = "raise ImportError('no such library')\n"
    for name, code in packages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        (tmp_path / f"{name}-9.dist-info").mkdir()
        (tmp_path / f"{name}-9.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = TRACKERS.replace("FOLDER", repr(str(tmp_path / "logs")))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    wandb, comet = result.stdout.splitlines()
    assert (
        wandb.startswith("report_to wandb cannot start (RuntimeError: api_key not configured); ") and "offline" in wandb
    )
    assert comet.startswith("report_to comet_ml: the package cannot be imported (ImportError: no such library); ")
