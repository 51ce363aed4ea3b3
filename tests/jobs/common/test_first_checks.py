"""A mistake that can be found without torch is reported before torch is imported, in one line and at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from apdm.audit.inputs.suites import SUITES
from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, VerifyConfig, load_config
from apdm.config.class_names import names_in_source
from apdm.config.options import options_by_path
from apdm.config.plugins import ATTACKS, FAMILIES, OBJECTIVES, PROTECTIONS, PURIFIERS, ZERO_SHOTS
from apdm.core.errors import UserError, UserErrors
from apdm.core.launcher import VARIABLES
from apdm.jobs.common.first_checks import DATASETS, FACE_NETWORKS, MODELS, PLUGINS, check_first

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "scipy", "datasets", "deepspeed")

# Runs commands in one process, and says what each of them answered and which large libraries were imported.
SCRIPT = """
import contextlib, io, json, sys, time
from apdm.cli import main
answers = []
for argv in json.loads(sys.argv[1]):
    said, started = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(said):
        code = main(argv)
    answers.append((code, said.getvalue(), time.process_time() - started))
import apdm
try:
    apdm.harden(pretrained_model_name_or_path="absent", instance_data_dir="absent", output_dir="out")
except apdm.UserError as error:
    answers.append((2, f"apdm: error: {error}\\n", 0))
print("\\n" + json.dumps([answers, sorted(set(sys.modules) & set(sys.argv[2].split(",")))]))
"""
MISTAKES = [
    (["harden", "--pretrained_model_name_or_path", "absent"], "absent: no such folder"),
    (["harden", "--pretrained_model_name_or_path", "unet"], "it has no model_index.json; name"),
    (["harden", "--pretrained_model_name_or_path", "absent/model.safetensors"], "no such folder or file"),
    (["harden", "--single_file_config", "unet"], "it has no model_index.json"),
    (["audit", "--base", "unet"], "it has no model_index.json"),
    (["harden", "--output_dir", __file__], "is not a folder"),
    (["audit", "--output_dir", "unet"], "unet holds files that are not from this program"),
    (["harden", "--output_dir", "done"], "done already holds a result: choose another or add --overwrite_output_dir"),
    (["perturb", "--output_dir", "hardened", "--overwrite_output_dir"], "hardened holds a hardened model, which this"),
    (["audit", "--output_dir", "begun", "--overwrite_output_dir"], "begun holds checkpoints of a hardening run"),
    (["audit", "--output_dir", "protected", "--overwrite_output_dir"], "protected holds protected photos, which this"),
    (["perturb", "--output_dir", "audited", "--overwrite_output_dir"], "audited holds attacks of an audit, which this"),
    (["harden", "--instance_data_dir", "absent"], "absent does not exist; give a folder as instance_data_dir"),
    (["harden", "--instance_data_dir", __file__], "is no folder; give a folder as instance_data_dir"),
    (["audit", "--protected_photos", "{here}", "--faceid_adapter", "{here}"], "is no file; give a file as faceid"),
    (["harden", "--rehearsal_data_dir", "absent"], "rehearsal_data_dir"),
    (["harden", "--pool.size", "1", "--pool.benign_size", "1", "--pool.benign_data_dir", "absent"], "benign_data_dir"),
    (["harden", "--class_dataset_name", "no/such/folder"], "no/such/folder does not exist; give a folder, a file or a"),
    (["harden", "--family", "sdxll"], 'no model family "sdxll"'),
    (["harden", "--objective", "dpoo"], 'no objective "dpoo"; did you mean "dpo"?'),
    (["harden", "--objective", "mine.py:Mine"], "mine.py does not exist"),
    (["harden", "--objective", "dpo:beta"], "should be one option=value"),
    (["harden", "--objective", "dpo:betta=3"], 'in "dpo:betta=3": dpo has no option "betta"; did you mean "beta"?'),
    (["audit", "--attacks", "lora:rnk=3"], 'did you mean "rank"?'),
    (["harden", "--variety.photos", "flip", "jpg"], 'did you mean "jpeg"?'),
    (["harden", "--audit.enabled", "--audit.holdout_data_dir", "absent"], "as audit.holdout_data_dir"),
    (["harden", "--audit.enabled", "--audit.encoders", "portrait-c"], "no face encoder is called 'portrait-c'"),
    (["harden", "--image_layer.enabled", "--image_layer.method", "dladif"], 'did you mean "dladiff"?'),
    (["harden", "--l2p.inner_stepz", "3"], 'did you mean "l2p.inner_steps"?'),
    (["harden", "--config", "absent.yaml"], "absent.yaml cannot be read"),
    (["perturb", "--faces", "buffalo_m=0.3"], "no InsightFace pack or face encoder is called 'buffalo_m'"),
    (["perturb", "--faces", "models/other.onnx=0.3"], "faces: models/other.onnx does not exist; give the path"),
    (["perturb", "--image_layer.zero_shot.detector", "mtcnn"], "no face detector is called 'mtcnn'"),
    (["audit", "--attacks", "dreamboth"], 'did you mean "dreambooth"?'),
    (["audit", "--protected_photos", "{here}", "--photo_attacks", "img2imgg"], "img2imgg"),
    (["audit", "--hardened", "absent"], "absent: no such folder"),
    (["verify", "absent"], "absent has no manifest.json; name the output folder of a run"),
    (["verify", "begun"], "begun has no manifest.json; its run is not finished: go on with it first"),
    (["verify", "--subjects", "absent"], "subjects"),
]
if find_spec("wandb") is None:
    MISTAKES.append((["harden", "--report_to", "wandb"], "report_to wandb needs the package wandb, which is not"))


def complete(argv: list[str], here: Path) -> list[str]:
    """Add the options that a command requires, with folders that exist."""
    required = {
        "harden": ("pretrained_model_name_or_path", "instance_data_dir", "output_dir"),
        "perturb": ("pretrained_model_name_or_path", "instance_data_dir", "output_dir"),
        "audit": ("base", "hardened", "subjects", "output_dir"),
        "verify": (),
    }[argv[0]]
    words = [str(here) if word == "{here}" else word for word in argv]
    apart = {"output_dir": "new", "instance_data_dir": "photos"}
    values = {name: str(here / apart.get(name, ".")) for name in required}
    added = [text for name in required if f"--{name}" not in words for text in (f"--{name}", values[name])]
    if words[0] == "verify" and words[1].startswith("--"):
        added = ["--output_dir", str(here)]
    return [words[0], *words[1:], *added]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    here = tmp_path_factory.mktemp("here")
    (here / "model_index.json").write_text("{}")
    made = ["done/.apdm", "hardened/.apdm", "begun/.apdm", "protected/.apdm", "done/manifest.json", "hardened/model/x"]
    made += ["begun/checkpoint-000003/x", "protected/images/s01.png", "audited/.apdm", "audited/cells/x"]
    for name in ["unet/model.safetensors", "photos/0.png", *made]:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    argvs = [complete(argv, here) for argv, _ in MISTAKES]
    words = [sys.executable, "-c", SCRIPT, json.dumps(argvs), ",".join(HEAVY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, check=True)
    found, imported = json.loads(run.stdout.splitlines()[-1])
    assert imported == []
    return [(code, said, seconds) for code, said, seconds in found]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(argv) for argv, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line_without_importing_torch(
    answers: list[tuple[int, str, float]], number: int
) -> None:
    code, said, seconds = answers[number]
    assert code == 2 and all(line.startswith("apdm: error: ") for line in said.splitlines())
    assert said.count("\n") == (2 if " ".join(MISTAKES[number][0]) == "verify --subjects absent" else 1)
    assert MISTAKES[number][1] in said
    assert seconds < 1


def test_the_python_functions_check_before_they_import_torch_too(answers: list[tuple[int, str, float]]) -> None:
    assert "absent: no such folder" in answers[-1][1]


@pytest.mark.parametrize("registry", [ATTACKS, FAMILIES, OBJECTIVES, PROTECTIONS, PURIFIERS, ZERO_SHOTS])
def test_the_source_names_exactly_the_classes_that_an_import_finds(registry) -> None:
    assert sorted(registry.names()) == sorted(registry.classes())


def test_a_name_that_only_running_the_code_tells_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "odd_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    (package / "plain.py").write_text("class Plain:\n    name = 'plain'\n    def run(self): ...\n")
    (package / "made.py").write_text('class Made:\n    name = str("made")\n    def run(self): ...\n')
    monkeypatch.syspath_prepend(tmp_path)
    from apdm.config.registry import Registry

    assert names_in_source("odd_plugins", ("run",)) == ("plain",)
    Registry("plug-in", "odd_plugins", ("run",)).check("made")
    with pytest.raises(UserError, match='there is no plug-in "maid"'):
        Registry("plug-in", "odd_plugins", ("run",)).check("maid")


def required(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "model_index.json").write_text("{}")
    names = ("pretrained_model_name_or_path", "instance_data_dir", "output_dir")
    return [text for name in names for text in (f"--{name}", str(tmp_path))] + ["--output_dir", "new", *more]


@pytest.mark.parametrize(
    "more",
    [
        ["--audit.holdout_data_dir", "absent"],
        ["--pool.benign_data_dir", "absent"],
        ["--image_layer.zero_shot.detector", "absent"],
        ["--pretrained_model_name_or_path", "name/model"],
        ["--audit.enabled", "--audit.encoders", "portrait-a"],
    ],
)
def test_options_that_the_job_does_not_use_and_names_on_the_hub_are_not_refused(
    tmp_path: Path, more: list[str]
) -> None:
    check_first(load_config(HardenConfig, required(tmp_path, *more)))


def test_none_is_no_photo_protection(tmp_path: Path) -> None:
    check_first(load_config(PerturbConfig, required(tmp_path, "--image_layer.method", "none")))


def test_an_attack_without_training_may_stand_among_the_photo_attacks(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    words = ["base", "hardened", "subjects", "output_dir", "protected_photos"]
    flags = [text for name in words for text in (f"--{name}", str(tmp_path))]
    check_first(
        load_config(AuditJobConfig, [*flags, "--output_dir", "new", "--photo_attacks", "img2img:strength=0.5", "lora"])
    )


def test_every_wrong_item_of_a_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    folder = str(tmp_path / "photos")
    flags = [text for name in ("base", "photos", "protected_photos") for text in (f"--{name}", folder)]
    lists = ["--purifiers", "mix:foo=1", "flip", "jpg", "--photo_attacks", "img2img:foo=1", "lora"]
    config = load_config(AuditJobConfig, [*flags, "--output_dir", str(tmp_path / "new"), *lists])
    with pytest.raises(UserErrors) as caught:
        check_first(config)
    for part in ('mix has no option "foo"', 'no purifier "jpg"', 'img2img has no option "foo"'):
        assert str(caught.value).count(part) == 1


@pytest.mark.parametrize("registry", [ATTACKS, OBJECTIVES, PROTECTIONS, PURIFIERS, ZERO_SHOTS])
def test_every_option_of_every_class_passes(registry) -> None:
    for name, cls in registry.classes().items():
        registry.check(f"{name}:" + ",".join(f"{option}=1" for option in registry.kinds(cls)))


def test_every_attack_of_every_suite_passes() -> None:
    for entry in (entry for entries in SUITES.values() for entry in entries):
        ATTACKS.check(entry.spec)
    for spec in ("dreambooth:identifier=t@t,class_noun=man", "two_stage:attack=lora,benign_steps=500,rank=32"):
        ATTACKS.check(spec)
    PROTECTIONS.check("dladiff:rounds=10")


def test_a_file_that_is_no_python_is_left_to_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn_plugins").mkdir()
    (tmp_path / "torn_plugins/torn.py").write_bytes(b"class Torn:\n  name = 'torn\xff")
    monkeypatch.syspath_prepend(tmp_path)
    assert names_in_source("torn_plugins", ("run",)) == ()


def test_a_machine_that_lacks_the_photos_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(HardenConfig, required(tmp_path, "--instance_data_dir", "absent"))
    with pytest.raises(UserError):
        check_first(config)
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    check_first(config)


@pytest.mark.parametrize("config", [HardenConfig, PerturbConfig, AuditJobConfig, VerifyConfig])
def test_every_option_that_holds_a_path_or_a_name_is_checked_first(config: type) -> None:
    # These folders are made, or are looked for in several places.
    made = {"class_data_dir", "output_dir", "logging_dir", "resume_from_checkpoint"}
    checked = {*MODELS, *DATASETS, *PLUGINS, *FACE_NETWORKS, "judge"}
    for path, option in options_by_path(config).items():
        if option.field.metadata["holds"] not in ("text", "folder", "file"):
            assert path.removeprefix("audit.") in checked | made, path
