"""`apdm push` sends what the manifest names, to a repository that may take it, with a card that gives nobody away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import OWNER, TOKEN, Repository, StandIn, stand_in
from huggingface_hub import ModelCard, constants
from tiny_results import make_results
from tiny_run import arguments, write_people

from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.cli import main
from apdm.config import HardenConfig, make_config
from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir, list_files
from apdm.export.hub import Destination, push_files
from apdm.export.hub_card import hub_card
from apdm.export.manifest import write_manifest
from apdm.export.pipeline import export_model
from apdm.families import load_family
from apdm.jobs.push import push_hardened, results_notes, results_table

ROOT = Path(__file__).parents[2]
BASE = "maker/base-model"
PROMPT = "a photo of qzx person"


@pytest.fixture(scope="module")
def sound(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a single file, an audit, and a working file that is never shipped."""
    root = claim_output_dir(tmp_path_factory.mktemp("run") / "out")
    export_model(
        load_family(tiny_pipeline),
        root / "model",
        base_path=tiny_pipeline,
        base_model=BASE,
        config_hash="ab" * 32,
        method="apdm",
        steps=7,
        held_out="the last third",
        single_file=True,
    )
    (root / "results.json").write_text(json.dumps(make_results()))
    (root / "config.yaml").write_text(f"instance_prompt: {PROMPT}\n")
    write_manifest(root, config_hash="")
    (root / "samples").mkdir()
    (root / "samples/secret.png").write_bytes(b"x")
    return root


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "hardened"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as served:
        served.repositories[BASE] = Repository(
            private=False, card={"license": "other", "license_name": "base-1", "tags": ["x"]}
        )
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "error: " in line]


# -- what is pushed ----------------------------------------------------------------------------------------------------


def test_the_files_of_the_model_are_pushed_to_a_private_repository(
    folder: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    repository = hub.repositories[f"{OWNER}/hardened"]
    assert repository.private and told["pushed"] == f"{hub.address}/{OWNER}/hardened"
    model = {path.relative_to(folder / "model").as_posix(): path for path in list_files(folder / "model")}
    assert repository.files.keys() == model.keys() | {".gitattributes"}
    assert all(repository.files[name] == path.read_bytes() for name, path in model.items() if name != "README.md")
    assert len(repository.commits) == 2, "one commit"


def test_the_card_names_base_licence_results_and_how_to_load_and_nobody(
    folder: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(folder), "--hub_model_id", f"{OWNER}/other", "--hub_public"]) == 0
    assert not hub.repositories[f"{OWNER}/other"].private
    text = hub.repositories[f"{OWNER}/other"].files["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (BASE, "finetune")
    assert (data["license"], data["license_name"], data["library_name"]) == ("other", "base-1", "diffusers")
    assert "apdm" in data["tags"] and data["pipeline_tag"] == "text-to-image"
    assert f'from_pretrained("{OWNER}/other")' in text and "single file" not in text
    assert "## Results" in text and "| likeness after" in text and "## Limits" in text and "## Threat model" in text
    results = from_json(Results, make_results())
    for private in [*results.subjects, *results.others, PROMPT, "qzx", str(folder), str(folder.parent), str(ROOT)]:
        assert private not in text


def test_a_name_of_a_recogniser_with_a_path_or_somebodys_id_is_left_out() -> None:
    results = from_json(Results, make_results())
    encoder, *_ = results.judges.encoders
    for name in ("/home/me/net", f"net {results.subjects[0].upper()}"):
        text = json.dumps(make_results()).replace(f'"{encoder.name}"', json.dumps(name))
        changed = from_json(Results, json.loads(text))
        shown = str(results_table(changed)) + str(results_notes(changed))
        assert "by recogniser 1" in shown and name not in shown
    own = replace(results, cost_factor=replace(results.cost_factor, spec="/home/me/attack.py:Mine:a=1"))
    assert "/home" not in str(results_notes(own))


@pytest.mark.parametrize("text", ["# A card\n", "---\n- a\n---\n", "---\na: [\n---\n"])
def test_a_card_without_a_metadata_block_is_bad_input(text: str) -> None:
    with pytest.raises(UserError, match="no metadata block"):
        hub_card(text, name="a/b", base_model=None, licence={}, table=[], notes="")


def test_without_an_audit_and_a_known_base_the_card_says_so(folder: Path, hub: StandIn) -> None:
    (folder / "results.json").unlink()
    card = folder / "model/README.md"
    card.write_text(card.read_text().replace(f"base_model: {BASE}\n", ""))
    write_manifest(folder, config_hash="")
    assert main(["push", str(folder), "--base_model", "nobody/knows"]) == 0
    text = hub.repositories[f"{OWNER}/hardened"].files["README.md"].decode()
    assert "Nobody attacked this model" in text
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "nobody/knows" and "license" not in data


def test_a_dry_run_sends_nothing_and_lists_the_files(
    folder: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "--dry_run"]) == 0
    assert "more file" in capsys.readouterr().out and hub.repositories.keys() == {BASE}
    assert all(request.startswith("GET") for request in hub.requests)


@pytest.mark.parametrize("offline", [False, True])
def test_a_dry_run_needs_neither_a_token_nor_the_hub(
    offline: bool,
    folder: Path,
    hub: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", str(folder), "--dry_run"]) == 0
    told = capsys.readouterr()
    assert "repository       hardened" in told.out and "more file" in told.out and hub.requests == []
    mend = "HF_HUB_OFFLINE is set; unset it" if offline else "there is no token"
    assert f"the repository hardened was not looked at: {mend}" in told.err
    assert main(["push", str(folder), "--dry_run", "--hub_model_id", "a b"]) == 2


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_repository_with_other_content_is_refused_unless_asked_and_old_weights_go(
    folder: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {".gitattributes": b"", "notes.md": b"n", "unet/diffusion_pytorch_model.fp16.safetensors": b"unhardened"}
    hub.repositories[f"{OWNER}/mine"] = repository = Repository(files=dict(files))
    words = ["push", str(folder), "--hub_model_id", "mine"]
    assert main(words) == 2
    (line,) = said(capsys)
    assert "holds files that apdm did not push, such as notes.md" in line and repository.files == files
    assert main([*words, "--hub_overwrite"]) == 0
    assert repository.files["notes.md"] == b"n" and set(files) - set(repository.files) == {[*files][2]}
    repository.card = ModelCard(repository.files["README.md"].decode()).data.to_dict()
    assert main(words) == 0, "what this program pushed is its own"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": None}, "there is no token for the Hugging Face Hub; set the environment variable HF_TOKEN"),
        ({"token": "hf_wrong"}, "the token is not valid"),
        ({"role": "read"}, "may only read"),
        ({"offline": True}, "HF_HUB_OFFLINE is set"),
        ({"name": "a b"}, "hub_model_id is a b, which is no name on the Hub"),
        ({"name": "company/model"}, "the token's owner may not do this"),
        ({"public": True}, "on the Hub is public; give --hub_public true"),
        ({"gone": True}, "check the network and repeat the command"),
        ({"leak": True}, "nothing was pushed: model/notes.txt is not in the manifest"),
        ({"unfinished": True}, "manifest.json cannot be read; name the output folder of a finished run"),
        ({"photos": True}, "holds no hardened model"),
    ],
)
def test_what_stands_in_the_way_is_one_line(
    change: dict[str, Any],
    message: str,
    folder: Path,
    hub: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    name = change.get("name", "model")
    hub.foreign, hub.role = {"company"}, change.get("role", "write")
    if "token" in change:
        monkeypatch.setenv("HF_TOKEN", change["token"] or "")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if "public" in change:
        hub.repositories[f"{OWNER}/model"] = Repository(private=False)
    if "gone" in change:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", "offline" in change)
    if "leak" in change:
        (folder / "model/notes.txt").write_text("n")
    if "unfinished" in change:
        (folder / "manifest.json").unlink()
    if "photos" in change:
        shutil.rmtree(folder / "model")
        write_manifest(folder, config_hash="")
    assert main(["push", str(folder), "--hub_model_id", name]) == 2
    (line,) = said(capsys)
    assert message in line
    assert not any(" /api/models" in request and request.startswith("POST") for request in hub.requests)


# -- after hardening ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def test_harden_pushes_its_model_at_the_end(
    tiny_pipeline: Path, people: Path, tmp_path: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny_pipeline, people, tmp_path / "out", max_train_steps=1)
    assert main(["harden", *words, "--push_to_hub", "--hub_model_id", "made"]) == 0
    assert f"pushed to       {hub.address}/{OWNER}/made" in capsys.readouterr().out
    files = hub.repositories[f"{OWNER}/made"].files
    assert "unet/diffusion_pytorch_model.safetensors" in files and b"base_model" not in files["README.md"]


@pytest.mark.parametrize("dry", [False, True])
def test_a_missing_token_is_told_before_hardening_starts(
    dry: bool,
    tiny_pipeline: Path,
    people: Path,
    tmp_path: Path,
    hub: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    words = arguments(tiny_pipeline, people, tmp_path / "out", push_to_hub="true", dry_run=str(dry).lower())
    assert main(["harden", *words]) == 2
    (line,) = said(capsys)
    assert "there is no token" in line and not (tmp_path / "out").exists() and hub.requests == []


def test_a_repository_that_may_not_be_made_is_told_before_hardening_starts(
    tiny_pipeline: Path, people: Path, tmp_path: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.foreign = {"company"}
    words = arguments(tiny_pipeline, people, tmp_path / "out", push_to_hub="true", hub_model_id="company/x")
    assert main(["harden", *words]) == 2
    assert "cannot make the repository company/x" in said(capsys)[0] and not (tmp_path / "out").exists()


def test_a_name_for_nothing_is_an_error(tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "out"), "--hub_model_id", "x"]) == 2
    assert "hub_model_id is given, and nothing is pushed; add --push_to_hub true" in said(capsys)[0]


def test_the_address_of_the_hub_comes_from_its_own_variable(folder: Path) -> None:
    with stand_in() as served:
        environment = {
            **os.environ,
            "HF_ENDPOINT": served.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "apdm", "push", str(folder), "--hub_model_id", "m"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "unet/config.json" in served.repositories[f"{OWNER}/m"].files


def test_a_push_that_fails_after_the_run_says_how_to_repeat_it(
    folder: Path, hub: StandIn, people: Path, tiny_pipeline: Path
) -> None:
    (folder / "model/notes.txt").write_text("n")
    options: dict[str, Any] = {"pretrained_model_name_or_path": tiny_pipeline, "output_dir": folder}
    options |= {"instance_data_dir": people / "protected", "push_to_hub": True, "hub_model_id": "m"}
    with pytest.raises(UserError, match=f"notes.txt is not .*the run is finished: apdm push {folder} --hub_model_id m"):
        push_hardened(make_config(HardenConfig, options))


def test_the_python_api_pushes_and_a_wrong_folder_is_told_before_the_hub_is_asked(folder: Path, hub: StandIn) -> None:
    import apdm

    pushed = apdm.push(output_dir=folder, hub_model_id="from-python")
    assert pushed.repository == f"{OWNER}/from-python" and pushed.address is not None
    with pytest.raises(UserError, match="nowhere does not exist"):
        apdm.push(output_dir=folder, hub_model_id="a name of nobody", subjects="nowhere")


def test_a_repository_that_is_deleted_meanwhile_is_one_line(hub: StandIn) -> None:
    gone = Destination(name=f"{OWNER}/gone", public=False, exists=True, head="0" * 40)
    with pytest.raises(UserError, match="no longer on the Hub"):
        push_files(gone, {"README.md": b"x"})
